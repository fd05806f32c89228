//! Keys that stand once for all mappings of a list, or in each of them: what is booted, for one DUT or for every role.
//!
//! ```text
//!  deployment: …                     target: [{role: a, deployment: …}, {role: b, deployment: …}]     either is enough
//!  target: [{role: a}, {role: b}]    target: [{role: a}, {role: b, deployment: …}]                    `a` lacks it
//! ```

use serde_json::Value as Json;

use super::{Walk, join, misspelt};
use crate::guard::{Kind, Node};
use crate::problem::Problem;

impl<'s> Walk<'s> {
    /// Tells keys that stand neither here nor in an item of the list that may have its own.
    pub(super) fn here_or_in_each(&mut self, schema: &'s Json, node: &Node, field: &str) {
        let word = &schema["x-here-or-in-each"];
        let Some(list) = word["list"].as_str() else { return };
        let keys = word["keys"].as_array().into_iter().flatten().filter_map(Json::as_str);
        let (form, _) = self.resolve(&schema["properties"][list]);
        let (item, _) = self.resolve(&form["x-item"]);
        let items = node.child(list).map_or(&[][..], Node::items);
        for key in keys.filter(|key| node.entry(key).is_none() && !misspelt(schema, node, key)) {
            if items.is_empty() {
                self.missing(schema, key, node, field);
            }
            let needs_none = |node: &Node| word["unless"].as_str().is_some_and(|other| node.entry(other).is_some());
            let lacks = |node: &Node| {
                let has_not = node.entry(key).is_none() && !misspelt(item, node, key);
                matches!(node.kind, Kind::Mapping(_)) && has_not && !needs_none(node)
            };
            for (index, node) in items.iter().enumerate().filter(|(_, node)| lacks(node)) {
                let what = format!("the key `{key}` is missing, here and at the top level");
                let problem = Problem::new(what).at(node.place).about(join(field, &format!("{list}[{index}].{key}")));
                self.tell(problem.hint(format!("add `{key}:` here, or at the top level for all that lack it")));
            }
        }
    }
}
