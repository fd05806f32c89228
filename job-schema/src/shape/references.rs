//! References to groups: `\\2` beside a regular expression that has one group is a mistake, told before anything is fetched or made.
//!
//! ```text
//!  keep: [{path: 'lib/(.*)', rewrite: '\\1'}]     x-groups-of: path, x-groups-in: rewrite
//!  http: [{path: '/fw/(.*)', url: 'https://h/\\1'}]                     x-groups-in: url
//! ```

use serde_json::Value as Json;

use super::{Walk, join, scalar_of};
use crate::guard::Node;
use crate::job::Groups;
use crate::pattern::Pattern;
use crate::problem::{Problem, quoted};

impl Walk<'_> {
    /// Tells references to groups that the regular expression beside them has not.
    pub(super) fn references(&mut self, schema: &Json, node: &Node, field: &str) {
        let (Some(of), Some(used_in)) = (schema["x-groups-of"].as_str(), schema["x-groups-in"].as_str()) else {
            return;
        };
        let text = |key| node.entry(key).and_then(|entry| scalar_of(&entry.value));
        let (Some(pattern), Some(user)) = (text(of), text(used_in)) else { return };
        let Some(groups) = Pattern::parse(&pattern.text).ok().map(|pattern| pattern.group_count()) else { return };
        let highest = Groups::highest_in(&user.text);
        if highest > groups {
            let place = node.entry(used_in).map_or(node.place, |entry| entry.value.place);
            let what = format!("{} refers to group {highest}, and `{of}` has {groups}", quoted(&user.text));
            let hint = "groups are counted by their opening parenthesis, from 1; `(?:…)` is none";
            self.tell(Problem::new(what).at(place).about(join(field, used_in)).hint(hint));
        }
    }
}
