//! Plans of every method as text, written out in `fixtures/boot`: what is published, what it says, and what DHCP tells.
//!
//! `WHARF_BLESS=1 cargo test -p executor --bins boot` writes them anew; read the difference before you keep it.

use std::fmt::Write as _;
use std::path::Path;

use job_schema::job::{Artifact, ArtifactSource, Job};
use job_schema::template::Rendered;

use super::settings::{Files, Load, Settings};
use super::*;

const DUT: Dut =
    Dut { place: Place { address: Ipv4Addr::new(10, 77, 0, 1), http_port: 80 }, mac: Mac([0x52, 0x54, 0, 0x77, 0, 1]) };

/// A deployment with everything, and what each boot loader reads in its own way in its command line.
const FULL: &str = "\
kernel: {url: 'http://host/Image', cmdline: ['console=ttyAMA0', 'a;b', 'run=\"one two\"', 'it''s', '$HOME|x&y#z', 'back\\slash']}
    initramfs: [{url: 'http://host/base.cpio.gz'}, {data: more}]
    dtb: {url: 'http://host/board.dtb'}
    storage: {http: {path: /results, data: x}, tftp: {path: /firmware, data: y}}
    fastboot: {header_version: 2, base: 0x80000000}";

/// The least that boots.
const KERNEL_ONLY: &str = "kernel: {attached: kernel, cmdline: quiet}";

fn deployment(start: &str) -> Deployment {
    let text =
        format!("version: 1\ntarget: {{tags: []}}\nconsole_patterns: {{}}\ndeployment:\n  start:\n    {start}\n");
    Job::parse(&Rendered::plain("job.yml", text)).unwrap_or_else(|problems| panic!("{problems}")).start
}

fn settings(name: &str) -> Settings {
    let text = |text: &str| Some(text.to_owned());
    let empty = Settings { method: name.to_owned(), ..Settings::default() };
    match name {
        "depthcharge" => Settings { files: Files { kernel: text("/lab/fit"), ..Files::default() }, ..empty },
        "fastboot" => Settings { variables: [("product".to_owned(), "redfin|bramble".to_owned())].into(), ..empty },
        "grub" => Settings { loader: Some("/srv/boot/grubnetaa64.efi".into()), prefix: text("/boot/grub/"), ..empty },
        "raspberry-pi" => {
            Settings { serial: text("Dead10CC"), config: vec!["dtoverlay=disable-bt".to_owned()], ..empty }
        }
        "u-boot" => Settings { load: Load { initramfs: Some(0x4400_0000), ..Load::default() }, ..empty },
        "uefi-http" => Settings { loader: Some("/srv/boot/shimx64.efi".into()), ..empty },
        "uefi-pxe" => Settings { bootfile: text("/firmware"), ..empty },
        _ => empty,
    }
}

/// A plan as people read it.
fn told(plan: &BootPlan) -> String {
    let mut text = String::new();
    for planned in &plan.artifacts {
        writeln!(text, "{} {:?} <- {}", planned.protocol, planned.name, source(&planned.source)).unwrap();
    }
    for rule in &plan.dhcp.rules {
        writeln!(text, "DHCP to {}: {}", audience(&rule.matches), rule.bootfile).unwrap();
        for (code, value) in &rule.options {
            writeln!(text, "  option {code} {:?}", String::from_utf8_lossy(value)).unwrap();
        }
        rule.vendor_class_reply.iter().for_each(|class| writeln!(text, "  option 60 {class}").unwrap());
    }
    if let Some(hand_over) = &plan.hand_over {
        writeln!(text, "the farm gives {hand_over}").unwrap();
    }
    let mut shown = Vec::new();
    for planned in &plan.artifacts {
        if let Source::Text(script) | Source::Wrapped { text: script, .. } = &planned.source
            && !shown.contains(script)
        {
            shown.push(script.clone());
            writeln!(text, "----- {:?}\n{script}", planned.name).unwrap();
        }
    }
    text
}

fn source(source: &Source) -> String {
    let artifact = |artifact: &Artifact| match &artifact.source {
        ArtifactSource::Url(text) | ArtifactSource::Attached(text) | ArtifactSource::Data(text) => text.clone(),
        ArtifactSource::Archive(_) => "an archive".to_owned(),
    };
    let artifacts = |list: &[Artifact]| list.iter().map(artifact).collect::<Vec<_>>().join(" + ");
    match source {
        Source::Text(_) => "text, below".to_owned(),
        Source::Wrapped { bytes, .. } => format!("the text below, wrapped in {} bytes", bytes.len()),
        Source::Firmware(path) => path.display().to_string(),
        Source::Artifacts(list) => artifacts(list),
        Source::Archives(list) => format!("{} (aligned)", artifacts(list)),
        Source::Android(image) => format!(
            "boot image of {}, {}, {}; {}",
            artifact(&image.kernel),
            artifacts(&image.ramdisk),
            artifacts(&image.dtb),
            image.cmdline
        ),
    }
}

fn audience(matches: &gateway::dhcp::BootMatch) -> String {
    let mut parts = Vec::new();
    parts.extend(
        matches
            .architecture
            .as_ref()
            .map(|list| list.iter().map(|architecture| architecture.to_string()).collect::<Vec<_>>().join(", ")),
    );
    parts.extend(matches.user_class.as_ref().map(|class| format!("{class:?}")));
    parts.extend(matches.client.as_ref().map(|client| format!("{client:?}")));
    if parts.is_empty() { "everybody".to_owned() } else { parts.join(" and ") }
}

#[test]
fn every_method_plans_what_is_written_down_of_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/boot");
    let mut wrong = Vec::new();
    for method in METHODS.iter().filter(|method| method.name != "ipxe") {
        let built = (method.build)(&settings(method.name));
        let plans = [FULL, KERNEL_ONLY, "{}"].map(|start| told(&built.plan(&deployment(start), &DUT)));
        let text = format!(
            "===== everything\n{}\n===== a kernel alone\n{}\n===== no kernel\n{}",
            plans[0], plans[1], plans[2]
        );
        let file = folder.join(format!("{}.txt", method.name));
        if std::env::var_os("WHARF_BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        if std::fs::read_to_string(&file).unwrap_or_default() != text {
            wrong.push(format!("{} is now:\n{text}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn methods_stand_in_alphabetical_order_and_each_name_finds_its_own() {
    assert!(METHODS.is_sorted_by_key(|method| method.name));
    assert!(METHODS.iter().all(|known| method(known.name).is_some_and(|found| found.name == known.name)));
    assert!(method("floppy").is_none());
}

#[test]
fn a_raspberry_pi_is_answered_in_its_own_folder_and_in_no_other() {
    let plan = raspberry_pi::build(&settings("raspberry-pi")).plan(&deployment(KERNEL_ONLY), &DUT);
    let answers = |asked: &str| {
        let is_answer = |planned: &&Planned| match &planned.name {
            Name::Exact(name) => name == asked,
            Name::Matching(name, matches) => name == asked || matches(asked),
        };
        plan.artifacts.iter().find(is_answer).map(|planned| source(&planned.source))
    };
    for folder in ["", "/dead10cc", "/52-54-00-77-00-01"] {
        assert_eq!(answers(&format!("{folder}/kernel8.img")).as_deref(), Some("kernel"), "{folder}");
    }
    for asked in ["/dead10cd/kernel8.img", "/a/dead10cc/kernel8.img", "/dead10cckernel8.img", "/dead10cc/kernel7.img"] {
        assert_eq!(answers(asked), None, "{asked}");
    }
    let any = raspberry_pi::build(&Settings::default()).plan(&deployment(KERNEL_ONLY), &DUT);
    let Name::Matching(_, matches) = &any.artifacts[0].name else { panic!("{:?}", any.artifacts[0].name) };
    assert!(
        matches("/0badcafe/config.txt") && !matches("/badcafe/config.txt"),
        "any serial number where none is given"
    );
}

#[test]
fn a_raspberry_pi_s_own_files_come_from_the_folder_and_do_not_hide_ours() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("overlays")).unwrap();
    for name in ["start4.elf", "config.txt", "overlays/miniuart-bt.dtbo"] {
        std::fs::write(folder.path().join(name), "x").unwrap();
    }
    let settings = Settings { firmware: Some(folder.path().to_owned()), ..settings("raspberry-pi") };
    let plan = raspberry_pi::build(&settings).plan(&deployment(KERNEL_ONLY), &DUT);
    let names: Vec<String> = plan
        .artifacts
        .iter()
        .filter(|planned| planned.protocol == Protocol::Tftp)
        .map(|planned| format!("{:?}", planned.name))
        .collect();
    let first = plan.artifacts.iter().find(|planned| format!("{:?}", planned.name) == "/config.txt").unwrap();
    assert!(matches!(first.source, Source::Text(_)), "{names:?}");
    assert!(names.contains(&"/start4.elf".to_owned()) && names.contains(&"/overlays/miniuart-bt.dtbo".to_owned()));
}

#[test]
fn a_kexec_script_is_one_that_a_shell_can_read() {
    let plan = kexec::build(&Settings::default()).plan(&deployment(FULL), &DUT);
    let script = plan.artifacts.iter().find_map(|planned| match &planned.source {
        Source::Text(text) => Some(text.clone()),
        _ => None,
    });
    let mut check = std::process::Command::new("sh");
    check.arg("-n").stdin(std::process::Stdio::piped());
    let mut shell = check.spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.unwrap().as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}
