//! Expressions of workflows, `${{ … }}`: names of what is known, and texts in quotes. ◆
//!
//! | written | becomes |
//! |---|---|
//! | `${{ secrets.KEY }}`, `${{ needs.build.outputs.image }}`, `${{ matrix['os'] }}` | that value; nothing when there is none |
//! | `${{ 'text' }}` | the text |
//! | functions, operators, `*` | refused: what they would mean here is the server's and its own runner's matter |

use std::collections::BTreeMap;

use serde_json::Value;

/// What names stand for, by their first word.
pub(super) type Contexts = BTreeMap<&'static str, Value>;

/// A text with its expressions replaced; the error is a sentence for the workflow's author.
pub(super) fn replaced(text: &str, contexts: &Contexts) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${{") {
        let (inner, after) = after.split_once("}}").ok_or_else(|| format!("`${{{{` without `}}}}` in `{text}`"))?;
        out.push_str(before);
        out.push_str(&value(inner.trim(), contexts)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn value(expression: &str, contexts: &Contexts) -> Result<String, String> {
    if let Some(text) = expression.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        // Actions write a quote within a text twice.
        return Ok(text.replace("''", "'"));
    }
    let words = words(expression).ok_or_else(|| {
        format!("`${{{{ {expression} }}}}` cannot be read here: only names such as `secrets.KEY` or `github.sha` can")
    })?;
    let (first, rest) = words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let Some(mut found) = contexts.get(first) else {
        let known: Vec<_> = contexts.keys().copied().collect();
        return Err(format!("`${{{{ {expression} }}}}`: there is no `{first}`; there are {}", known.join(", ")));
    };
    for word in rest {
        found = member(found, word);
    }
    Ok(text_of(found))
}

/// Names do not tell capitals from small letters (GitHub's "Contexts").
fn member<'a>(of: &'a Value, name: &str) -> &'a Value {
    let members = of.as_object().into_iter().flatten();
    members.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next().unwrap_or(&Value::Null)
}

/// A value as a text.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `a.b['c']` as its words.
fn words(expression: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = expression;
    loop {
        let end = rest.find(|letter: char| !is_of_a_name(letter)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return None;
        }
        words.push(word.to_owned());
        rest = after;
        while let Some(inside) = rest.strip_prefix("['") {
            let (word, after) = inside.split_once("']")?;
            words.push(word.to_owned());
            rest = after;
        }
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None => return rest.is_empty().then_some(words),
        }
    }
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn contexts() -> Contexts {
        BTreeMap::from([
            ("secrets", json!({"KEY": "hunter2"})),
            ("github", json!({"sha": "abc", "run_attempt": 1, "event": {"inputs": {"x": true}}})),
        ])
    }

    #[test]
    fn names_are_replaced_and_missing_ones_are_nothing() {
        for (text, expected) in [
            ("no expression $HOME ${x}", "no expression $HOME ${x}"),
            ("a ${{ secrets.KEY }} b ${{github.sha}}", "a hunter2 b abc"),
            ("${{ SECRETS }}x", "error"),
            ("${{ secrets.key }}", "hunter2"),
            ("${{ github.event.inputs['x'] }} ${{ github.run_attempt }}", "true 1"),
            ("[${{ secrets.NONE }}${{ github.no.such }}]", "[]"),
            ("${{ 'it''s' }}", "it's"),
        ] {
            let replaced = replaced(text, &contexts());
            assert_eq!(replaced.as_deref().unwrap_or("error"), expected, "{text}");
        }
    }

    #[test]
    fn what_is_more_than_a_name_is_refused_by_its_own_words() {
        for text in ["${{ always() }}", "${{ a == b }}", "${{ github.* }}", "${{ }}", "${{ github['sha }}"] {
            let error = replaced(text, &contexts()).unwrap_err();
            assert!(error.contains("only names such as"), "{text}: {error}");
        }
        let error = replaced("${{ inputs.x }}", &contexts()).unwrap_err();
        assert_eq!(error, "`${{ inputs.x }}`: there is no `inputs`; there are github, secrets");
        assert_eq!(replaced("${{ x", &contexts()).unwrap_err(), "`${{` without `}}` in `${{ x`");
    }
}
