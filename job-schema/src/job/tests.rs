//! Jobs from their text: defaults, merge rules, additions, and the golden drawings of `fixtures/jobs/bad`.

use std::path::{Path, PathBuf};

use super::*;
use crate::template::Rendered;
use crate::{Limits, Variables, decode, render};

fn parse(text: &str) -> Job {
    Job::parse(&Rendered::plain("job.yml", text)).unwrap_or_else(|problems| panic!("{problems}"))
}

fn problems(text: &str) -> Vec<String> {
    let problems = Job::parse(&Rendered::plain("job.yml", text)).expect_err("a bad job");
    problems.list().iter().map(|problem| format!("{}: {}", problem.field, problem.what)).collect()
}

/// A job whose `deployment` is the given text, indented by four.
fn deployed(deployment: &str) -> Job {
    let indented: String = deployment.lines().map(|line| format!("  {line}\n")).collect();
    parse(&format!("version: 1\ntarget: {{tags: []}}\nconsole_patterns: {{}}\ndeployment:\n{indented}"))
}

fn urls(artifacts: &[Artifact]) -> Vec<&str> {
    artifacts
        .iter()
        .map(|artifact| match &artifact.source {
            ArtifactSource::Url(url) => url.as_str(),
            other => panic!("not a URL: {other:?}"),
        })
        .collect()
}

fn minutes(number: u64) -> Option<Duration> {
    Some(Duration::from_secs(number * 60))
}

#[test]
fn the_smallest_job_has_ci_trons_defaults() {
    let job = parse("target: {tags: []}\nconsole_patterns: {}\ndeployment: {start: {}}\n");
    assert_eq!(job.target, Target { id: None, tags: vec![], gear: vec![] });
    assert_eq!(job.deadline, None);
    assert_eq!(job.timeouts.overall, Timeout { duration: minutes(360), retries: 0 });
    assert_eq!(job.timeouts.infra_setup, Timeout { duration: minutes(90), retries: 0 });
    assert_eq!(job.timeouts.infra_teardown, Timeout { duration: minutes(90), retries: 0 });
    assert_eq!(job.timeouts.boot_cycle, Timeout { duration: None, retries: 0 });
    assert!(!job.firmware_boot_given);
    assert_eq!(job.patterns.session_end.as_str(), r"^\[[\d \.]{12}\] reboot: Power Down$");
    assert_eq!(job.patterns.job_success, None);
    assert_eq!(job.start, Deployment::default());
    assert_eq!(job.continue_, job.start);
    assert_eq!(job.timeouts, Timeouts::default());
}

#[test]
fn timeouts_are_sums_of_their_units_and_infinite_without_any() {
    let timeouts = |text: &str| {
        parse(&format!("target: {{tags: []}}\nconsole_patterns: {{}}\ndeployment: {{start: {{}}}}\ntimeouts: {text}\n"))
            .timeouts
    };
    let table = [
        ("{boot_cycle: {minutes: 1, seconds: 30, milliseconds: 500, retries: 3}}", Some(90_500), 3),
        ("{boot_cycle: {days: 1, hours: 1}}", Some(90_000_000), 0),
        ("{boot_cycle: {minutes: '1.5'}}", Some(90_000), 0),
        ("{boot_cycle: {minutes: 1_0}}", Some(600_000), 0),
        ("{boot_cycle: {minutes: -5, seconds: 1}}", Some(0), 0),
        ("{boot_cycle: {minutes: 0}}", Some(0), 0),
        ("{boot_cycle: {retries: 2}}", None, 2),
        ("{boot_cycle: {}}", None, 0),
        ("{boot_cycle: null}", None, 0),
    ];
    for (text, milliseconds, retries) in table {
        let expected = Timeout { duration: milliseconds.map(Duration::from_millis), retries };
        assert_eq!(timeouts(text).boot_cycle, expected, "{text}");
    }
    // A quarter of whole days is a quarter of them, not zero; a quarter of for ever is for ever.
    assert_eq!(timeouts("{overall: {days: 2}}").infra_setup.duration, minutes(12 * 60));
    assert_eq!(timeouts("{overall: {}}").infra_teardown.duration, None);
    assert_eq!(timeouts("{watchdogs: {boot: {minutes: 2}}}").watchdogs["boot"].duration, minutes(2));
}

#[test]
fn a_key_with_nothing_after_it_counts_as_absent() {
    let text = "version:\ntarget: {id:, tags: []}\ntimeouts:\nproxy:\nconsole_patterns: {watchdogs:, job_warn: ~}\n\
        deployment: {start: {kernel:, storage: {http:, nbd:, nfs: null}, dhcp:, fastboot: {board:}}}\n";
    let job = parse(text);
    assert_eq!(job.start, Deployment { fastboot: Some(Fastboot::default()), ..Deployment::default() });
    assert_eq!(job.timeouts, Timeouts::default());
}

#[test]
fn a_mac_address_is_a_name_whatever_yaml_1_1_says() {
    let job = parse("target: {id: 52:54:00:11:22:33}\nconsole_patterns: {}\ndeployment: {start: {}}\n");
    assert_eq!(job.target.id.as_deref(), Some("52:54:00:11:22:33"));
}

#[test]
fn a_deadline_is_utc_unless_it_says_otherwise() {
    for text in ["2026-11-21 18:00:00", "2026-11-21T18:00:00Z", "2026-11-21T19:00:00+01:00", "'2026-11-21 18:00'"] {
        let job = parse(&format!(
            "deadline: {text}\ntarget: {{tags: []}}\nconsole_patterns: {{}}\ndeployment: {{start: {{}}}}\n"
        ));
        assert_eq!(
            job.deadline.map(|deadline| deadline.to_string()).as_deref(),
            Some("2026-11-21T18:00:00Z"),
            "{text}"
        );
    }
}

#[test]
fn the_command_line_is_its_pieces_by_category_and_then_the_rest() {
    let table = [
        ("quiet", "quiet"),
        ("[a, b]", "a b"),
        ("{90-mine: [x], 50-platform: [y, z]}", "y z x"),
        ("{b: x, ':uncategorised': [y], a: [z]}", "z x y"),
        ("{categories: {b: [x], a: [z]}, uncategorised: [y]}", "z x y"),
        ("{a: [x], b: null}", "x"),
        ("[]", ""),
        ("null", ""),
    ];
    for (cmdline, expected) in table {
        let job = deployed(&format!("start: {{kernel: {{url: 'https://h/k', cmdline: {cmdline}}}}}"));
        assert_eq!(job.start.cmdline_text(), expected, "{cmdline}");
    }
}

#[test]
fn continue_changes_start_by_category() {
    let start =
        "start: {kernel: {url: 'https://h/k', cmdline: {categories: {a: [a1, a2], b: [b1]}, uncategorised: [u1]}}}";
    let table = [
        ("x", "a1 a2 b1 x"),
        ("[x, y]", "a1 a2 b1 x y"),
        ("{a: [x]}", "x b1 u1"),
        ("{a: []}", "b1 u1"),
        ("{a: null, c: z}", "b1 z u1"),
        ("{a: [x], ':uncategorised': [y]}", "x b1 y"),
        ("[]", "a1 a2 b1 u1"),
        ("null", "a1 a2 b1 u1"),
    ];
    for (cmdline, expected) in table {
        let job = deployed(&format!("{start}\ncontinue: {{kernel: {{cmdline: {cmdline}}}}}"));
        assert_eq!(job.continue_.cmdline_text(), expected, "{cmdline}");
        assert_eq!(job.start.cmdline_text(), "a1 a2 b1 u1");
        assert_eq!(job.continue_.kernel, job.start.kernel);
    }
}

#[test]
fn continue_replaces_what_it_names_and_clears_nothing() {
    let job = deployed(
        "\
start:
  kernel: {data: old, format: {uboot: {}}}
  initramfs: {url: https://h/a}
  dtb: [{url: https://h/d}]
  storage:
    nbd: {root: {size: 1G}, swap: {size: 2G}}
    http: [{path: /a, data: a}]
  fastboot: {base: 0x10, board: x, pagesize: 4096}
continue:
  kernel: {url: https://h/new}
  initramfs: [{url: https://h/b}, {url: https://h/c}]
  dtb: []
  storage:
    nbd: {swap: {size: 4G, readonly: yes}, more: {size: 8G}}
    http: {late: {path: /b, data: b}}
  fastboot: {base: 0, board: '', pagesize: 2048}
",
    );
    let kernel = job.continue_.kernel.expect("it has one");
    assert_eq!(kernel.artifact.source, ArtifactSource::Url("https://h/new".to_owned()));
    assert_eq!(kernel.artifact.format, [FormatStep::Uboot(UbootFormat::default())]);
    assert_eq!(urls(&job.continue_.initramfs), ["https://h/b", "https://h/c"]);
    assert_eq!(urls(&job.continue_.dtb), ["https://h/d"]);
    let sizes: Vec<(&str, &NbdContent)> =
        job.continue_.storage.nbd.iter().map(|nbd| (nbd.name.as_str(), &nbd.content)).collect();
    let empty = |gigabytes: u64| NbdContent::Empty { size_bytes: gigabytes << 30 };
    assert_eq!(sizes, [("root", &empty(1)), ("swap", &empty(4)), ("more", &empty(8))]);
    let paths: Vec<&str> = job.continue_.storage.http.iter().map(|artifact| artifact.path.as_str()).collect();
    assert_eq!(paths, ["/a", "/b"]);
    let fastboot = job.continue_.fastboot.expect("it has one");
    assert_eq!((fastboot.base, fastboot.board.as_deref(), fastboot.pagesize), (Some(0x10), Some("x"), Some(2048)));
    assert_eq!(job.start.storage.nbd.len(), 2);
}

#[test]
fn a_request_looks_among_the_uncategorised_first() {
    let job = deployed(
        r"
start:
  storage:
    http:
      categories:
        b: [{path: '/fw/.*', data: b}]
        a: [{path: '/fw/(.*)\.bin(\.gz)?', url: 'https://h/\1?x=\g<1>&y=\2'}]
      uncategorised: [{path: '/fw/mine', data: mine}, {path: '/c++', data: plus}]
",
    );
    let http = &job.start.storage.http;
    let data = |path: &str| StorageArtifact::find(http, path).map(|(artifact, _)| artifact.artifact.source.clone());
    assert_eq!(data("/fw/mine"), Some(ArtifactSource::Data("mine".to_owned())));
    assert_eq!(data("/fw/other"), Some(ArtifactSource::Data("b".to_owned())));
    assert_eq!(data("/c++"), Some(ArtifactSource::Data("plus".to_owned())));
    assert_eq!(data("/x/fw/other"), None);
    assert_eq!(data("/fw/other\n"), None);
    let (artifact, groups) = StorageArtifact::find(http, "/fw/gpu.bin").expect("it matches");
    let ArtifactSource::Url(url) = &artifact.artifact.source else { panic!("{artifact:?}") };
    assert_eq!(groups.expand(url), "https://h/gpu?x=gpu&y=");
}

#[test]
fn every_field_of_main_is_read() {
    let job = deployed(
        r#"
start:
  kernel:
    archive:
      extension: cpio
      compression: gz
      add:
        - {path: /init, artifact: {data: "x"}, mode: 0100755}
        - {path: /etc/conf, artifact: {attached: conf}}
  dtb:
    url: https://h/dtbs.tar
    format:
      - archive: {match: 'boot/(.*)\.dtb'}
      - archive: {extension: tar, compression: bz2, keep: {path: 'a/(.*)', rewrite: 'b/\1'}}
      - uboot: {architecture: arm32, type: flat_dt}
  storage:
    tftp: {path: pxe/.*, url: https://h/x}
    imagestore: {public: {images: {tests: {name: docker://h/t, platform: linux/arm64, tls_verify: no, pull: relaxed_always}}}}
    nbd: {storage: {url: https://h/disk.qcow2, readonly: on, max_connections: 5}}
  dhcp:
    - match: {architecture: 7, firmware: [uefi, bios], user_class: 'i.*'}
      options: {bootfile: x.efi, "175": [1, 2], server_name: gw}
  fastboot: {header_version: 2, base: 0x10000000, dtb_offset: "0x1f00000", os_version: 12.0.0, os_patch_level: 2023-10, boot_image: {url: https://h/boot.img}}
"#
        .replace("path: pxe", "path: /pxe")
        .as_str(),
    );
    let Some(Kernel { artifact: Artifact { source: ArtifactSource::Archive(archive), .. } }) = job.start.kernel else {
        panic!()
    };
    let modes: Vec<(&str, u32)> = archive.add.iter().map(|member| (member.path.as_str(), member.mode)).collect();
    assert_eq!(modes, [("/init", 0o100_755), ("/etc/conf", 0o100_644)]);
    assert_eq!((archive.extension, archive.compression), (ArchiveKind::Cpio, Compression::Gz));
    let [FormatStep::Archive(first), FormatStep::Archive(second), FormatStep::Uboot(third)] =
        &job.start.dtb[0].format[..]
    else {
        panic!()
    };
    assert_eq!(first.match_.as_deref(), Some(r"boot/(.*)\.dtb"));
    assert_eq!(second.keep, [Keep { path: "a/(.*)".to_owned(), rewrite: Some(r"b/\1".to_owned()) }]);
    assert_eq!((third.architecture, third.kind.as_str()), (UbootArchitecture::Arm32, "flat_dt"));
    let image = &job.start.storage.imagestore["tests"];
    assert_eq!(
        (image.tls_verify, image.pull, image.platform.as_str()),
        (false, PullPolicy::RelaxedAlways, "linux/arm64")
    );
    let nbd = &job.start.storage.nbd[0];
    assert_eq!((nbd.name.as_str(), nbd.readonly, nbd.max_connections), ("storage", true, 5));
    let dhcp = &job.start.dhcp[0];
    assert!(dhcp.match_.architecture[0].matches("7"));
    assert!(dhcp.match_.firmware[1].matches("bios") && dhcp.match_.user_class[0].matches("iPXE"));
    assert!(!dhcp.match_.user_class[0].matches("xiPXE"));
    assert_eq!(dhcp.options["175"], serde_json::json!([1, 2]));
    let fastboot = job.start.fastboot.expect("it has one");
    assert_eq!((fastboot.base, fastboot.dtb_offset), (Some(0x1000_0000), Some(0x1f0_0000)));
    assert_eq!((fastboot.os_version.as_deref(), fastboot.os_patch_level.as_deref()), (Some("12.0.0"), Some("2023-10")));
}

#[test]
fn the_additions_to_ci_tron_are_read() {
    let job = deployed(
        r#"
start:
  storage:
    http:
      - {path: /a, data: x, lifetime: first_read}
      - {path: /b, attached: file, lifetime: {access_count: 0, first_read: 5 minutes, duration: {hours: 1, minutes: 30}}}
      - {path: /c, data: x, expose: {port: 8080, tls: true}}
    nbd:
      - {name: raw, raw: {size: 20GB}, reset_on: boot, shared: true, expiration: 7 days}
      - name: tree
        filesystem: {type: ext4, size: 20G, data: {url: https://h/rootfs.tar.gz}}
        reset_on: never
      - {name: image, filesystem: {type: squashfs, size: 512M, container: "docker://alpine:latest"}}
    nfs: [{name: root, readonly: false, container: "docker://alpine", expiration: 1h 30m}]
    s3: [{bucket: results, fill: {url: https://h/x.tar}, expiration: 7 days}]
"#,
    );
    let storage = job.start.storage;
    let lifetimes: Vec<&Lifetime> = storage.http.iter().map(|artifact| &artifact.lifetime).collect();
    assert_eq!(lifetimes[0], &Lifetime { access_count: Some(1), ..Lifetime::default() });
    assert_eq!(lifetimes[1], &Lifetime { access_count: None, first_read: minutes(5), duration: minutes(90) });
    assert_eq!(storage.http[1].artifact.source, ArtifactSource::Attached("file".to_owned()));
    assert_eq!(storage.http[2].expose, Some(Expose { port: Some(8080), tls: true }));
    let [raw, tree, image] = &storage.nbd[..] else { panic!() };
    assert_eq!(raw.content, NbdContent::Empty { size_bytes: 20_000_000_000 });
    assert_eq!((raw.reset_on, raw.shared, raw.expiration), (ResetOn::Boot, true, minutes(7 * 24 * 60)));
    assert_eq!(
        (raw.readonly, raw.max_connections, tree.reset_on, image.reset_on),
        (true, 4, ResetOn::Never, ResetOn::JobStart),
        "a shared disk is read-only unless its own entry says otherwise"
    );
    let NbdContent::Filesystem(Filesystem {
        kind: FilesystemKind::Ext4,
        size_bytes: 21_474_836_480,
        content: Some(TreeSource::Archive(_)),
    }) = &tree.content
    else {
        panic!("{tree:?}")
    };
    let NbdContent::Filesystem(Filesystem { content: Some(TreeSource::Container(name)), .. }) = &image.content else {
        panic!("{image:?}")
    };
    assert_eq!(name, "docker://alpine:latest");
    assert_eq!(storage.nfs[0].expiration, minutes(90));
    assert_eq!(storage.s3[0].bucket.as_str(), "results");
}

#[test]
fn endpoints_have_a_host_and_a_port() {
    for (text, host, port) in
        [("example.org:443", "example.org", 443), ("10.0.0.1:80", "10.0.0.1", 80), ("[fe80::1]:22", "fe80::1", 22)]
    {
        let endpoint: Endpoint = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.to_string()), (host, port, text.to_owned()));
    }
    for text in [
        "example.org",
        "example.org:",
        "example.org:0",
        "example.org:65536",
        ":80",
        "::1:80",
        "[::1:80",
        "a/b:80",
        "[x]:80",
    ] {
        assert!(text.parse::<Endpoint>().is_err(), "{text}");
    }
}

#[test]
fn mistakes_of_shape_and_of_meaning_are_told_together() {
    let told = problems(
        "version: 0\ntarget: {id: ''}\ntimeouts: {overall: {retries: 1}}\nconsole_patterns: {x: 1}\ndeployment: {start: {}}\n",
    );
    let expected = [
        "version: `0` is out of range",
        "target.id: the id `` names no machine",
        "timeouts.overall.retries: `1` retries are given to a timeout that ends the job",
        "console_patterns.x: unknown key `x`",
    ];
    assert_eq!(told, expected);
}

#[test]
fn the_schema_lists_every_key_and_closes_every_mapping() {
    let schema = json_schema();
    let text = schema.to_string();
    for key in [
        "deadline",
        "machine_unfit_for_service",
        "boot_progress",
        "imagestore",
        "reset_on",
        "expose",
        "boot_image",
        "allowed_endpoints",
        "rewrite",
    ] {
        assert!(text.contains(&format!("\"{key}\"")), "{key}");
    }
    assert_eq!(schema["required"], serde_json::json!(["target"]));
    assert_eq!(schema["additionalProperties"], serde_json::json!(false));
    assert_eq!(schema["properties"]["version"]["minimum"], serde_json::json!(1));
}

#[test]
fn the_jobs_shown_in_the_documentation_are_jobs() {
    let page = include_str!("../../../docs/job-description.md");
    let blocks: Vec<&str> = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let jobs: Vec<&&str> =
        blocks.iter().filter(|block| block.starts_with("version:") || block.starts_with("# job")).collect();
    assert!(!jobs.is_empty());
    for job in jobs {
        let mut variables = Variables::new();
        variables.insert("machine_id", "52:54:00:11:22:33");
        let rendered = render("job-description.md", job, &variables, &Limits::default());
        if let Err(problems) = rendered.and_then(|rendered| Job::parse_all(&rendered)) {
            panic!("{problems}");
        }
    }
    let documented = |key: &String| {
        ["`KEY`", "`KEY:", "{KEY", " KEY:", " KEY,", "KEY}", "storage.KEY`"]
            .iter()
            .any(|form| page.contains(&form.replace("KEY", key)))
    };
    let missing: Vec<String> = schema_keys(&json_schema()).into_iter().filter(|key| !documented(key)).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
}

/// Every key that any mapping of the schema lists.
fn schema_keys(schema: &serde_json::Value) -> Vec<String> {
    let mut keys = Vec::new();
    match schema {
        serde_json::Value::Object(object) => {
            let listed = object.get("properties").and_then(serde_json::Value::as_object);
            keys.extend(listed.into_iter().flatten().map(|(key, _)| key.clone()));
            keys.extend(object.values().flat_map(schema_keys));
        }
        serde_json::Value::Array(items) => keys.extend(items.iter().flat_map(schema_keys)),
        _ => {}
    }
    keys
}

#[test]
fn every_good_job_of_the_fixtures_is_a_job() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/jobs/good");
    let mut variables = Variables::new();
    variables.insert("images_url", "http://10.0.0.1/images");
    variables.insert("machine_id", "52:54:00:11:22:33");
    variables.insert(
        "job",
        serde_json::json!({"http": {"url": "http://10.0.0.1"}, "tftp": {"url": "tftp://10.0.0.1", "host": "10.0.0.1"}}),
    );
    for entry in std::fs::read_dir(&folder).expect("the fixtures are there") {
        let path = entry.expect("the fixtures can be read").path();
        let text = std::fs::read_to_string(&path).expect("the fixture can be read");
        let rendered = render(&path.to_string_lossy(), &text, &variables, &Limits::default());
        if let Err(problems) = rendered.and_then(|rendered| Job::parse_all(&rendered)) {
            panic!("{problems}");
        }
    }
}

#[test]
fn every_bad_job_is_answered_with_its_golden_drawing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/jobs/bad");
    let mut jobs: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the fixtures are there")
        .map(|entry| entry.expect("the fixtures can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .collect();
    jobs.sort();
    assert!(jobs.len() >= 15, "{} bad jobs", jobs.len());
    for path in jobs {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let drawing = drawing_of(&name, &std::fs::read(&path).expect("the fixture can be read")) + "\n";
        let golden = path.with_extension("problems");
        // To accept new drawings: BLESS=1 cargo test -p job-schema golden
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &drawing).expect("the fixtures can be written");
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(drawing, expected, "{} differs; this is what was drawn:\n{drawing}", golden.display());
    }
}

fn drawing_of(name: &str, bytes: &[u8]) -> String {
    let mut variables = Variables::new();
    variables.insert("machine_id", "52:54:00:11:22:33");
    let started = std::time::Instant::now();
    let answer = decode(name, bytes)
        .and_then(|text| render(name, &text, &variables, &Limits::default()))
        .and_then(|rendered| Job::parse_all(&rendered));
    assert!(started.elapsed() < Duration::from_secs(5), "{name} took {:?}", started.elapsed());
    match answer {
        Ok(job) => panic!("{name} is no bad job: {job:?}"),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn any_bytes_never_panic_the_parser() {
    let words = [
        "version",
        "target",
        "id",
        "tags",
        "role",
        "- role: a\n",
        "count: 2",
        "gear",
        "start_together",
        "timeouts",
        "overall",
        "minutes",
        "console_patterns",
        "session_end",
        "regex",
        "deployment",
        "start",
        "continue",
        "kernel",
        "url",
        "cmdline",
        "storage",
        "http",
        "nbd",
        "path",
        "data",
        "lifetime",
        "categories",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "\n      ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "'",
        "\"",
        "|\n",
        ">-\n",
        "&a ",
        "*a",
        "<<: ",
        "!!str ",
        "? ",
        "#",
        "---\n",
        "é",
        "\u{7f}",
        "1",
        "0x10",
        "yes",
        "null",
        "https://h/k",
        "5 minutes",
        "(",
        "\\",
        "\t",
        "%YAML 1.1\n",
        "\u{feff}",
    ];
    let mut random = crate::seeded::Random::new(0x5eed_0002);
    for _ in 0..3_000 {
        let text: String = (0..random.below(60)).map(|_| words[random.below(words.len())]).collect();
        if let Err(problems) = Job::parse_all(&Rendered::plain("job.yml", text)) {
            assert!(!problems.to_string().is_empty());
        }
    }
}

#[test]
fn any_change_of_a_good_job_never_panics_the_parser() {
    let one: &[u8] = include_bytes!("../../../fixtures/jobs/bad/quantities.yml");
    let several: &[u8] = include_bytes!("../../../fixtures/jobs/bad/roles.yml");
    let mut random = crate::seeded::Random::new(0x5eed_0003);
    for turn in 0..3_000 {
        let mut bytes = [one, several][turn % 2].to_vec();
        for _ in 0..=random.below(6) {
            let at = random.below(bytes.len().max(1)).min(bytes.len() - 1);
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        if let Ok(text) = decode("job.yml", &bytes)
            && let Err(problems) = Job::parse_all(&Rendered::plain("job.yml", text))
        {
            assert!(!problems.to_string().is_empty());
        }
    }
}
