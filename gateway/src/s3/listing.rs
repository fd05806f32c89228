//! One page of a bucket's listing. ◆
//!
//! ```text
//!  names in their order, from just behind the marker ─► with the prefix? ─ no ─► the end
//!                                                        └ a delimiter behind it? ─► one common prefix for all of them
//!  at most `max` entries; the last one is the next page's marker
//! ```
//! S3, ListObjectsV2: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask {
    pub(super) prefix: String,
    pub(super) delimiter: Option<String>,
    /// The last entry of the page before: a name, or a common prefix.
    pub(super) after: String,
    pub(super) max: usize,
}

/// An entry of a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry<T> {
    Object(String, T),
    Prefix(String),
}

/// A page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<T> {
    pub(super) entries: Vec<Entry<T>>,
    /// The marker of the next page, if there is one.
    pub(super) next: Option<String>,
}

impl<T> Entry<T> {
    fn name(&self) -> &str {
        let (Entry::Object(name, _) | Entry::Prefix(name)) = self;
        name
    }
}

/// Whether the listing needs to see more.
pub(super) type More = bool;

/// A page in the making: it is shown the names from [`Ask::first`] on.
pub(super) struct Pages<T> {
    ask: Ask,
    page: Page<T>,
}

impl Ask {
    /// The first name to look at.
    pub(super) fn first(&self) -> &str {
        if self.after > self.prefix { &self.after } else { &self.prefix }
    }
}

impl<T> Pages<T> {
    pub(super) fn new(ask: Ask) -> Pages<T> {
        Pages { ask, page: Page { entries: Vec::new(), next: None } }
    }

    /// Looks at the next name.
    pub(super) fn show(&mut self, name: &str, object: impl FnOnce() -> T) -> More {
        let Ask { prefix, delimiter, after, max } = &self.ask;
        let Some(rest) = name.strip_prefix(prefix.as_str()) else { return false };
        if *max == 0 {
            return false;
        }
        let delimiter = delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
        let end = delimiter.and_then(|delimiter| Some(rest.find(delimiter)? + delimiter.len()));
        let common = end.map(|end| &name[..prefix.len() + end]);
        let entry_name = common.unwrap_or(name);
        let is_told =
            entry_name <= after.as_str() || self.page.entries.last().is_some_and(|last| last.name() == entry_name);
        if is_told {
            return true;
        }
        if self.page.entries.len() == *max {
            self.page.next = self.page.entries.last().map(|last| last.name().to_owned());
            return false;
        }
        self.page.entries.push(match common {
            Some(common) => Entry::Prefix(common.to_owned()),
            None => Entry::Object(name.to_owned(), object()),
        });
        true
    }

    pub(super) fn page(self) -> Page<T> {
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 7] = ["a", "b/1", "b/2", "b/c/3", "b0", "c", "d/x"];

    fn list(prefix: &str, delimiter: Option<&str>, after: &str, max: usize) -> (Vec<String>, Option<String>) {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        let ask = Ask { prefix, delimiter: delimiter.map(str::to_owned), after, max };
        let first = ask.first().to_owned();
        let mut pages = Pages::new(ask);
        for name in NAMES.into_iter().filter(|name| *name >= first.as_str()) {
            if !pages.show(name, || ()) {
                break;
            }
        }
        let page = pages.page();
        (page.entries.iter().map(|entry| entry.name().to_owned()).collect(), page.next)
    }

    #[test]
    fn everything_is_listed_in_the_order_of_names() {
        assert_eq!(list("", None, "", 1000), (NAMES.map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn a_delimiter_folds_what_is_behind_it() {
        let folded = ["a", "b/", "b0", "c", "d/"].map(str::to_owned).to_vec();
        assert_eq!(list("", Some("/"), "", 1000), (folded, None));
        assert_eq!(list("b/", Some("/"), "", 1000).0, ["b/1", "b/2", "b/c/"]);
        assert_eq!(list("b", Some(""), "", 1000).0, ["b/1", "b/2", "b/c/3", "b0"]);
    }

    #[test]
    fn page_after_page_gives_each_entry_once() {
        for (delimiter, all) in [(None, NAMES.len()), (Some("/"), 5)] {
            for max in 1..4 {
                let (mut told, mut after) = (Vec::new(), String::new());
                loop {
                    let (entries, next) = list("", delimiter, &after, max);
                    assert!(entries.len() <= max);
                    told.extend(entries);
                    match next {
                        Some(next) => after = next,
                        None => break,
                    }
                }
                assert_eq!(
                    (told.len(), told.is_sorted_by(|one, other| one < other)),
                    (all, true),
                    "{delimiter:?} {max}"
                );
            }
        }
    }

    #[test]
    fn no_entries_are_a_page_that_is_the_last() {
        assert_eq!(list("", None, "", 0), (vec![], None));
        assert_eq!(list("zzz", None, "", 10), (vec![], None));
        assert_eq!(list("b/", None, "b/c/3", 10), (vec![], None));
    }
}
