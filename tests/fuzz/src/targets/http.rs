//! HTTP's core: paths, ranges and forms as anybody may write them.
//!
//! ```text
//!  lines: path │ Range │ If-Range │ If-None-Match │ form        the last letter of the path chooses the size
//! ```

use gateway::http::answer::{BadPath, Conditions, Target, Way, alias, answer, route, way};
use gateway::http::form;

use crate::corpus;

const TAG: &str = "\"i6-00ff\"";

pub(super) fn run(bytes: &[u8]) {
    // hyper gives headers as text that is visible ASCII, and paths likewise; what else there is, our own code must bear.
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let path = lines.next().unwrap_or_default();
    check_path(path);
    let mut header = || lines.next().filter(|line| !line.is_empty());
    let asked = Conditions { range: header(), if_range: header(), if_none_match: header() };
    for size in [0, 1, 1000, u64::MAX] {
        check_answer(asked, size);
    }
    check_form(lines.next().unwrap_or_default());
}

fn check_path(path: &str) {
    let Target { key, name } = match route(path) {
        Ok(target) => target,
        Err(bad) => return check_refusal(path, bad),
    };
    assert!(name.starts_with('/') && !name.contains("//") && !name.contains(char::is_control), "{name}");
    assert!(name.split('/').all(|part| part != ".." && part != "."), "{name}");
    assert!(key.iter().all(|key| !key.contains('/')), "{key:?}");
    if let Some(other) = alias(&name) {
        assert_eq!(other, "/_/boot/boot.ipxe");
    }
    // A name is what its encoding leads to: no name stands for two artifacts.
    let whole = key.map_or(name.clone(), |key| format!("/_/n/{key}{name}"));
    let encoded: String =
        whole.bytes().map(|byte| if byte == b'/' { "/".to_owned() } else { format!("%{byte:02x}") }).collect();
    if encoded.len() <= 4096 {
        assert_eq!(route(&encoded).map(|target| target.name), Ok(name), "{encoded}");
    }
}

fn check_refusal(path: &str, bad: BadPath) {
    assert_eq!(bad.status() == 414, path.len() > 4096);
    assert!(path.contains('%') || path.contains("..") || path.len() > 4096 || path.contains(char::is_control));
    assert!(bad.to_string().len() < 100);
}

fn check_answer(asked: Conditions<'_>, size: u64) {
    let found = answer(asked, size, Some(TAG));
    let length = found.length.unwrap_or(0);
    assert!(found.offset.checked_add(length).is_some_and(|end| end <= size), "{found:?} of {size}");
    match found.status {
        200 => assert_eq!((found.offset, length, &found.content_range), (0, size, &None)),
        206 => assert!(length > 0 && asked.range.is_some() && found.content_range.is_some(), "{found:?}"),
        304 => assert!(asked.if_none_match.is_some() && found.length.is_none(), "{found:?}"),
        416 => assert_eq!((length, &found.content_range), (0, &Some(format!("bytes */{size}")))),
        other => panic!("status {other}"),
    }
    // What goes on with a read that was counted does not begin it again.
    assert!(way(asked.range) == Way::Open || found.status != 206 || found.offset > 0, "{asked:?}: {found:?} of {size}");
}

fn check_form(text: &str) {
    match form::pairs(text) {
        Ok(pairs) => {
            let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
            assert!(bytes <= text.len() && pairs.len() <= text.len());
        }
        Err(bad) => assert!(text.contains(&bad.0) && bad.0.contains('%'), "{bad:?}"),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let requests: [&[u8]; 8] = [
        b"/kernel\n\n\n\na=1&b=two+words&c=%0A&d",
        b"//_//n/0123456789abcdef//_/job/initramfs/0\nbytes=4-6\n\"i6-00ff\"\n\nx=%c3%a9",
        b"/boot/52:54:00:77:00:01/boot.ipxe\nbytes=-3\nW/\"i6-00ff\"\n",
        b"/a/%2e%2e/b\nbytes=99999999999999999999-\n\n*",
        b"/a%2f..%2fb\nBytes = 512-1023\n\n\"a\", W/\"i6-00ff\"\n%zz=1",
        b"/./a/.//\nbytes=0-0,4-5",
        b"/%c3%a9%00\nbytes=0-\nSat, 21 Nov 2026 00:00:00 GMT\n",
        b"/_/n\nbytes=-0\n",
    ];
    let mut seeds: Vec<_> = requests.iter().map(|request| request.to_vec()).collect();
    seeds.push(b"/a".repeat(2049));
    seeds.extend(corpus(include_str!("../../corpus/http.hex")));
    seeds
}
