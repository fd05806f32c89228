//! House rules that a machine can see (docs/ARCHITECTURE.md). A rule worth saying twice is a test here.
//!
//! Each test lists every place that breaks its rule, so that one run is enough to mend them all.

use std::collections::BTreeSet;

use tests::workspace::{SourceFile, cargo, files};

/// Files that decide without doing: no sockets, tasks, files or clocks. Any other file that carries the mark ◆ in its head is held
/// to the same.
const SANS_IO: &[&str] = &[
    "executor/src/boot/ipxe.rs",
    "executor/src/boot/mod.rs",
    "executor/src/lease/allocator.rs",
    "executor/src/session.rs",
    "executor/src/verdict.rs",
    "gateway/src/content/revalidation.rs",
    "gateway/src/dhcp/boot.rs",
    "gateway/src/dhcp/reply.rs",
    "gateway/src/dhcp/request.rs",
    "gateway/src/dhcp/table.rs",
    "gateway/src/egress.rs",
    "gateway/src/http/answer.rs",
    "gateway/src/namespace.rs",
    "gateway/src/nbd/export.rs",
    "gateway/src/nbd/handshake.rs",
    "gateway/src/nbd/message.rs",
    "gateway/src/tftp/packet.rs",
    "gateway/src/tftp/transfer.rs",
];

/// What a file without sockets, tasks, files and clocks does not say. Addresses are values, so `std::net` is asked for by name.
const IO_WORDS: &[&str] = &[
    ".await",
    "::now()",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixListener",
    "UnixStream",
    "async",
    "std::fs",
    "std::process",
    "std::thread",
    "tokio",
];

/// Rooms, and the doors they do not have. The first matching words of a `use` are enough: `crate::tftp` also finds `crate::tftp::packet`.
const NO_DOOR: &[(&str, &[&str])] = &[
    ("executor/src/api/", &["crate::blueprint::console::qemu", "crate::cli", "crate::virtual_dut::qemu"]),
    ("executor/src/blueprint/", &["crate::api", "crate::cli", "crate::farm", "crate::runner", "crate::session"]),
    ("executor/src/blueprint/console/", &["crate::lease"]),
    ("executor/src/blueprint/dut.rs", &["crate::lease::actor", "crate::lease::store", "crate::lease::{"]),
    ("executor/src/blueprint/power/", &["crate::lease"]),
    (
        "executor/src/boot/",
        &["crate::api", "crate::blueprint", "crate::cli", "crate::farm", "crate::lease", "crate::session"],
    ),
    ("executor/src/callers", &["crate::api", "crate::cli", "crate::farm", "crate::lease", "crate::session"]),
    ("executor/src/console", &["crate::api", "crate::cli", "crate::farm", "crate::runner", "crate::session"]),
    ("executor/src/farm/", &["crate::api", "crate::cli", "crate::forge"]),
    ("executor/src/farm.rs", &["crate::api", "crate::cli", "crate::forge"]),
    (
        "executor/src/forge",
        &["crate::api", "crate::blueprint", "crate::cli", "crate::lease", "crate::runner", "crate::session"],
    ),
    (
        "executor/src/lease/",
        &["crate::api", "crate::blueprint", "crate::cli", "crate::farm", "crate::session", "gateway"],
    ),
    ("executor/src/messages", &["crate::api", "crate::cli", "crate::farm", "crate::lease", "crate::session"]),
    ("executor/src/outlets", &["crate::api", "crate::cli", "crate::farm", "crate::lease", "crate::session"]),
    (
        "executor/src/runner.rs",
        &["crate::api", "crate::cli", "crate::farm", "crate::lease::desk", "crate::virtual_dut"],
    ),
    ("executor/src/session.rs", &["ConsoleStream", "Pdu", "crate::farm", "crate::lease", "crate::runner", "gateway"]),
    (
        "executor/src/ssh/",
        &["crate::api", "crate::blueprint", "crate::cli", "crate::config", "crate::farm", "crate::lease"],
    ),
    ("executor/src/virtual_dut/", &["crate::api", "crate::cli", "crate::farm", "crate::lease", "crate::session"]),
    ("gateway/src/", &["executor"]),
    ("gateway/src/content/", &["crate::dhcp", "crate::http", "crate::nbd", "crate::tftp"]),
    ("gateway/src/dhcp/", &["crate::content", "crate::http", "crate::nbd", "crate::tftp"]),
    ("gateway/src/http/", &["crate::dhcp", "crate::nbd", "crate::tftp"]),
    ("gateway/src/namespace.rs", &["crate::content", "crate::dhcp", "crate::http", "crate::nbd", "crate::tftp"]),
    ("gateway/src/nbd/", &["crate::dhcp", "crate::http", "crate::tftp"]),
    ("gateway/src/registry/", &["crate::dhcp", "crate::http", "crate::nbd", "crate::s3", "crate::tftp"]),
    ("gateway/src/tftp/", &["crate::dhcp", "crate::http", "crate::nbd"]),
    (
        "job-schema/src/",
        &["::now()", "TcpStream", "UdpSocket", "async", "executor", "gateway", "std::fs", "std::process", "tokio"],
    ),
];

/// Rust sources above the size at which a file wants to become two, each with the reason why it is one.
const SIZE_MAX: usize = 36_000;
const LARGE: &[(&str, &str)] = &[
    ("executor/src/virtual_dut/qemu.rs", "one process and its QMP dialogue, and the tests that boot it"),
    ("gateway/src/tftp/transfer.rs", "one state machine; two thirds are its tests"),
    ("job-schema/src/job.rs", "the checks of every section of a job, in the order of the document"),
];

fn rust_files() -> Vec<SourceFile> {
    let files = files("rs");
    assert!(files.len() > 50, "only {} Rust files were found: the walk does not see the workspace", files.len());
    files
}

fn none(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n  {}\n", breaches.join("\n  "));
}

/// Whether the head of the file (its `//!` lines) carries the mark of a core without input and output.
fn is_marked(file: &SourceFile) -> bool {
    file.text.lines().take_while(|line| line.starts_with("//!")).any(|line| line.trim_end().ends_with('◆'))
}

#[test]
fn cores_have_no_sockets_tasks_files_or_clocks() {
    let files = rust_files();
    let mut breaches: Vec<_> = SANS_IO
        .iter()
        .filter(|path| !files.iter().any(|file| file.path == **path))
        .map(|path| format!("{path}: is listed as a core, and is not there"))
        .collect();
    for file in files.iter().filter(|file| SANS_IO.contains(&file.path.as_str()) || is_marked(file)) {
        let code = file.shipped();
        breaches.extend(IO_WORDS.iter().flat_map(|word| file.places(&code, word)));
    }
    none("a core takes bytes and `now` as arguments and gives back what to do", breaches);
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    let files = rust_files();
    let mut breaches = Vec::new();
    for (room, words) in NO_DOOR {
        let inside: Vec<_> = files.iter().filter(|file| file.path.starts_with(room)).collect();
        if inside.is_empty() {
            breaches.push(format!("{room}: is listed as a room, and is not there"));
        }
        for file in inside {
            let code = file.shipped();
            breaches.extend(words.iter().flat_map(|word| file.places(&code, word)));
        }
    }
    none("a room reached into another one; docs/ARCHITECTURE.md draws the doors", breaches);
}

#[test]
fn crates_depend_in_one_direction() {
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("cargo prints JSON");
    let mut arrows = BTreeSet::new();
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let ours: Vec<_> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in packages {
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let name = dependency["name"].as_str().unwrap_or_default();
            if ours.contains(&name) {
                let kind = dependency["kind"].as_str().unwrap_or("normal");
                arrows.insert(format!("{} -> {name} ({kind})", package["name"].as_str().unwrap_or_default()));
            }
        }
        if package["name"] == "job-schema" {
            let outside = ["hyper", "nix", "reqwest", "socket2", "tokio"];
            let wrong = package["dependencies"].as_array().into_iter().flatten();
            let wrong: Vec<_> =
                wrong.filter(|dependency| outside.iter().any(|name| dependency["name"] == *name)).collect();
            assert!(wrong.is_empty(), "job-schema knows no socket, task, file or clock, but depends on {wrong:?}");
        }
    }
    let expected = [
        "executor -> fuzz (dev)",
        "executor -> gateway (normal)",
        "executor -> job-schema (normal)",
        "executor -> tests (dev)",
        "fuzz -> gateway (normal)",
        "fuzz -> job-schema (normal)",
        "fuzz -> tests (dev)",
        "gateway -> job-schema (normal)",
    ];
    assert_eq!(arrows.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn every_file_says_first_why_it_exists() {
    let silent = rust_files().into_iter().filter(|file| !file.text.starts_with("//! "));
    none("a file starts with `//! ` and why it exists", silent.map(|file| file.path).collect());
}

#[test]
fn nothing_is_left_for_later_inside_the_code() {
    let in_code = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
    // Spelled in two halves, so that this file does not break its own rule.
    let anywhere = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("TO", "DO")];
    let mut breaches = Vec::new();
    for file in rust_files() {
        let code = file.code();
        breaches.extend(in_code.iter().flat_map(|word| file.places(&code, word)));
        breaches.extend(anywhere.iter().flat_map(|word| file.places(&file.text, word)));
    }
    none("finish it, or describe it in an issue", breaches);
}

#[test]
fn nothing_that_ships_unwraps() {
    let mut breaches = Vec::new();
    for file in rust_files() {
        breaches.extend(file.places(&file.shipped(), ".unwrap()"));
    }
    none("name the error, or say with `expect` why it cannot happen", breaches);
}

#[test]
fn commands_print_by_the_printer_that_a_closed_pipe_does_not_end() {
    let mut breaches = Vec::new();
    for file in rust_files().iter().filter(|file| file.path.starts_with("executor/src/cli/")) {
        breaches.extend(["println!", "print!("].iter().flat_map(|word| file.places(&file.shipped(), word)));
    }
    none(
        "`view::print` for answers, `view::say` for remarks: the standard library's macros panic at `wharf … | head`",
        breaches,
    );
}

#[test]
fn no_module_is_named_after_nothing_in_particular() {
    let empty_words = ["common", "helper", "helpers", "misc", "util", "utils"];
    let is_empty = |file: &SourceFile| {
        let mut names = file.path.split(['/', '.']);
        names.any(|name| empty_words.contains(&name))
    };
    let breaches = rust_files().into_iter().filter(is_empty).map(|file| file.path);
    none("put the thing where the next reader would first look for it", breaches.collect());
}

#[test]
fn tables_of_drivers_and_methods_are_alphabetical() {
    let tables = ["DRIVERS", "KINDS", "METHODS"];
    let mut breaches = Vec::new();
    for file in rust_files() {
        for table in tables {
            let Some((_, body)) = file.text.split_once(&format!("const {table}:")) else { continue };
            let body = body.split("];").next().unwrap_or_default();
            let names: Vec<_> = body.lines().filter_map(|line| line.split('"').nth(1)).collect();
            if !names.is_sorted() {
                breaches.push(format!("{}: {table}: {names:?}", file.path));
            }
        }
    }
    none("a table is in alphabetical order, so that two people who add a line do not meet", breaches);
}

#[test]
fn dependencies_are_alphabetical_and_get_their_version_in_one_place() {
    let mut breaches = Vec::new();
    for manifest in files("toml").into_iter().filter(|file| file.path.ends_with("Cargo.toml")) {
        for section in manifest.text.split("\n[").filter(|section| section.contains("dependencies]")) {
            let names: Vec<_> = section
                .lines()
                .skip(1)
                .filter(|line| line.starts_with(|first: char| first.is_ascii_alphabetic()))
                .filter_map(|line| line.split([' ', '.', '=']).next())
                // The house's own crates stand first, apart.
                .filter(|name| !["executor", "fuzz", "gateway", "job-schema", "tests"].contains(name))
                .collect();
            if !names.is_sorted() {
                breaches.push(format!("{}: {names:?}", manifest.path));
            }
        }
        if manifest.path != "Cargo.toml" {
            let versions = manifest.text.lines().filter(|line| line.contains("version = \""));
            breaches.extend(versions.map(|line| format!("{}: {line}", manifest.path)));
        }
    }
    none("versions stand in the workspace's Cargo.toml, in alphabetical order", breaches);
}

#[test]
fn no_line_ends_in_blanks_and_every_file_ends_its_last_line() {
    let mut breaches = Vec::new();
    for file in ["rs", "toml", "md", "sh"].into_iter().flat_map(files) {
        let blank = file.text.lines().enumerate().filter(|(_, line)| line.ends_with([' ', '\t', '\r']));
        breaches.extend(blank.map(|(index, _)| format!("{}:{}", file.path, index + 1)));
        if !file.text.ends_with('\n') || file.text.ends_with("\n\n") {
            breaches.push(format!("{}: must end in one newline", file.path));
        }
    }
    none("blanks at the end of a line are noise in every later change", breaches);
}

#[test]
fn a_large_file_has_a_reason() {
    let files = rust_files();
    let is_listed = |path: &str| LARGE.iter().any(|(listed, _)| *listed == path);
    let mut breaches: Vec<_> = files
        .iter()
        .filter(|file| file.text.len() > SIZE_MAX && !is_listed(&file.path))
        .map(|file| format!("{}: {} bytes", file.path, file.text.len()))
        .collect();
    let is_large = |path: &str| files.iter().any(|file| file.path == path && file.text.len() > SIZE_MAX);
    let small = LARGE.iter().filter(|(path, _)| !is_large(path));
    breaches.extend(small.map(|(path, _)| format!("{path}: is small again; take it off the list")));
    none("a file of this size wants to be two; if not, say why in LARGE", breaches);
}

/// What a command of the toolchain printed, or `None` where the toolchain lacks it: rustup's minimal profile has neither rustfmt nor
/// clippy. `.ci/run` insists on both.
fn run_component(component: &str, arguments: &[&str]) -> Option<(bool, String)> {
    if !cargo(&[component, "--version"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("cargo {component} is not installed: nothing was checked; rustup component add clippy rustfmt");
        return None;
    }
    let output = cargo(arguments).output().unwrap();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout),
    ))
}

#[test]
fn the_code_is_formatted() {
    if let Some((success, said)) = run_component("fmt", &["fmt", "--check", "--all"]) {
        assert!(success, "run `cargo fmt`:\n{said}");
    }
}

#[test]
fn clippy_has_nothing_to_say() {
    let arguments = ["clippy", "--workspace", "--all-targets", "--offline", "--locked", "--", "-D", "warnings"];
    if let Some((success, said)) = run_component("clippy", &arguments) {
        assert!(success, "{said}");
    }
}

#[test]
fn every_link_of_the_rust_documentation_leads_somewhere() {
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--offline", "--locked"]);
    let output = command.env("RUSTDOCFLAGS", "-D warnings").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
