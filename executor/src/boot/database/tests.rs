//! Which entries speak for which machine, what the database may say wrong, and what the job changes.

use std::net::Ipv4Addr;

use gateway::dhcp::Mac;
use job_schema::job::Job;
use job_schema::template::Rendered;

use super::*;
use crate::boot::{Place, Source};

const DUT: Dut =
    Dut { place: Place { address: Ipv4Addr::new(10, 77, 0, 1), http_port: 80 }, mac: Mac([0x52, 0x54, 0, 0x77, 0, 1]) };

const BOARDS: &str = "\
boots:
  - match: {tags: ['board:rock5']}
    defaults:
      kernel: {cmdline: {10-console: 'console=ttyS2,1500000', 20-name: 'name={{ dut.id }}'}}
  - match: {tags: ['board:rock5'], firmware: uboot}
    boot: {method: u-boot}
    defaults: {dtb: {50-board: {url: 'http://files/rock5.dtb'}}}
  - match: {tags: [fixed-names]}
    boot: {method: depthcharge}
";

const JOB: &str = "\
version: 1
target: {tags: []}
console_patterns: {}
deployment:
  start:
    kernel: {url: 'http://host/k', cmdline: {20-name: [], 90-job: mine}}
";

fn database(text: &str) -> Database {
    Database { source_name: "boots.yml".into(), text: text.into(), directory: PathBuf::new() }
}

/// The plan of [`JOB`] for a machine with these tags: names of what is published, and to whom DHCP says which file.
fn planned(own: Option<&Settings>, tags: &[&str]) -> (BootPlan, Vec<String>) {
    let mut variables = Variables::new();
    variables.insert("dut", serde_json::json!({ "id": "left" }));
    let tags: Vec<String> = tags.iter().map(|tag| tag.to_string()).collect();
    let choices = choices(own, Some(&database(BOARDS)), &tags, &variables).unwrap();
    let plan = |choice: &Choice| {
        let job = Job::parse_over(&Rendered::plain("job.yml", JOB), None, &choice.defaults).unwrap();
        choice.plan(&job.start, &DUT).unwrap()
    };
    let plan = joined(choices.iter().map(plan).collect());
    let rule = |rule: &gateway::dhcp::BootRule| {
        let firmware: Vec<_> = rule.matches.said.firmware.iter().map(|word| word.as_str()).collect();
        format!("{firmware:?} {}", rule.bootfile)
    };
    let rules = plan.dhcp.rules.iter().map(rule).collect();
    (plan, rules)
}

fn script(plan: &BootPlan, name: &str) -> String {
    let text = |planned: &Planned| match &planned.source {
        Source::Text(text) | Source::Wrapped { text, .. } if format!("{:?}", planned.name) == name => {
            Some(text.clone())
        }
        _ => None,
    };
    plan.artifacts.iter().find_map(text).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_board_s_defaults_lie_under_the_job_and_its_firmware_is_asked_for_by_dhcp() {
    let (plan, rules) = planned(None, &["board:rock5", "farm:lab"]);
    assert_eq!(rules[..2], ["[\"uboot\"] boot.scr.uimg", "[] http://10.77.0.1/_/boot/boot.ipxe"]);
    let text = script(&plan, "/boot.scr.uimg");
    assert!(text.contains("setenv bootargs 'console=ttyS2,1500000 mine'\n"), "the job emptied 20-name: {text}");
    assert!(text.contains("tftpboot ${fdt_addr_r} /_/job/dtb"), "{text}");
    let text = script(&plan, "/_/boot/boot.ipxe");
    assert!(text.contains("/_/job/kernel console=ttyS2,1500000 mine\n"), "iPXE has the board's defaults, too: {text}");
}

#[test]
fn values_of_the_dut_are_in_its_defaults() {
    let mut variables = Variables::new();
    variables.insert("dut", serde_json::json!({ "id": "left" }));
    let choices = choices(None, Some(&database(BOARDS)), &["board:rock5".to_owned()], &variables).unwrap();
    let job = JOB.replace("20-name: [], ", "");
    let job = Job::parse_over(&Rendered::plain("job.yml", job), None, &choices[0].defaults).unwrap();
    assert_eq!(job.start.cmdline_text(), "console=ttyS2,1500000 name=left mine");
}

#[test]
fn a_machine_that_no_entry_speaks_for_boots_by_ipxe_and_one_entry_without_conditions_is_the_last() {
    let (_, rules) = planned(None, &["other"]);
    assert_eq!(rules[0], "[] http://10.77.0.1/_/boot/boot.ipxe");
    let (plan, rules) = planned(None, &["fixed-names"]);
    assert_eq!(rules, ["[] vmlinuz"]);
    assert_eq!(script(&plan, "/cmdline"), "mine");
}

#[test]
fn what_the_farm_file_says_of_a_machine_goes_before_all_methods_of_the_database() {
    let own = Settings { method: "kexec".into(), ..Settings::default() };
    let (plan, rules) = planned(Some(&own), &["board:rock5"]);
    assert_eq!(rules, ["[] http://10.77.0.1/_/boot/kexec.sh"]);
    let text = script(&plan, "/_/boot/kexec.sh");
    assert!(text.contains("--command-line='console=ttyS2,1500000 mine'"), "defaults without a method stay: {text}");
}

#[test]
fn of_two_plans_the_first_one_s_file_is_served() {
    let (plan, _) = planned(None, &["board:rock5"]);
    let kernels = plan
        .artifacts
        .iter()
        .filter(|planned| format!("{:?} {}", planned.name, planned.protocol) == "/_/job/kernel HTTP");
    assert_eq!(kernels.count(), 1);
}

#[test]
fn a_job_s_dhcp_options_go_to_the_clients_that_it_and_the_entry_name() {
    let job = format!("{JOB}    dhcp: {{match: {{protocol: tftp}}, options: {{root_path: /srv}}}}\n");
    let choices = choices(None, Some(&database(BOARDS)), &["board:rock5".to_owned()], &Variables::new()).unwrap();
    let job = Job::parse(&Rendered::plain("job.yml", job)).unwrap();
    let plan = choices[0].plan(&job.start, &DUT).unwrap();
    let [extra] = plan.dhcp.extras.as_slice() else { panic!("{:?}", plan.dhcp.extras) };
    assert_eq!(extra.options, [(17, b"/srv".to_vec())]);
    assert_eq!((extra.matches[0].protocol[0].as_str(), extra.matches[1].firmware[0].as_str()), ("tftp", "uboot"));
    let wrong = Job::parse(&Rendered::plain("job.yml", format!("{JOB}    dhcp: {{options: {{'53': 1}}}}\n"))).unwrap();
    let told = choices[0].plan(&wrong.start, &DUT).unwrap_err();
    assert_eq!(told, ["option 53 (`53`) belongs to the exchange itself and cannot be set"]);
}

#[test]
fn everything_wrong_in_a_farm_s_boots_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let boots = "boots:\n  - {match: {firmware: uboot}}\n  - boot: {method: uboot}\n  - boot: {method: ipxe, serial: '1'}\n  \
                 - {boot: {method: kexec}, defaults: {kernel: {cmd: x}}}\n";
    std::fs::write(folder.path().join("boots.yml"), boots).unwrap();
    let farm = "name: lab\nnetwork: {loopback: {}}\nboots: boots.yml\nduts:\n\
                - {mac: 52:54:00:77:00:01, address: 127.0.0.5, machine: {simulated: {}}, boot: {method: raspberry-pi, serial: x, load: {dtb: 0x4000}}}\n";
    let problems = crate::config::parse("farm.yml", farm, folder.path()).map(drop).expect_err("it is wrong");
    let folder = format!("{}/", folder.path().display());
    let told: Vec<_> = problems
        .list()
        .iter()
        .map(|problem| format!("{}: {}", problem.field, problem.what.replace(&folder, "")))
        .collect();
    assert_eq!(
        told,
        [
            "boots: boots.yml:2:5: boots[0]: an entry about a firmware needs a method",
            "boots: boots.yml:3:20: boots[1].boot.method: no boot method is called `uboot`",
            "boots: boots.yml:4:34: boots[2].boot.serial: `serial` means nothing to the boot method `ipxe`",
            "boots: boots.yml:4:34: boots[2].boot.serial: `1` is no serial number",
            "boots: boots.yml:5:49: boots[3].defaults.kernel.cmd: unknown key `cmd`",
            "duts[0].boot.serial: `x` is no serial number",
            "duts[0].boot.load: `load` means nothing to the boot method `raspberry-pi`",
        ]
    );
    let hint = problems.list()[1].hint.clone().unwrap_or_default();
    assert!(
        hint.starts_with("the boot methods are depthcharge, fastboot, grub, ipxe, kexec, raspberry-pi, "),
        "{hint}"
    );
}

#[test]
fn a_loader_is_reached_one_way_and_named_as_loaders_are() {
    let dut = |boot: &str| {
        let farm = format!(
            "name: lab\nnetwork: {{loopback: {{}}}}\nduts:\n\
             - {{mac: 52:54:00:77:00:01, address: 127.0.0.5, machine: {{simulated: {{}}}}, boot: {{method: {boot}}}}}\n"
        );
        let parsed = crate::config::parse("farm.yml", &farm, Path::new(""));
        let told = |problems: job_schema::problem::Problems| {
            problems.list().iter().map(|problem| format!("{}: {}", problem.field, problem.what)).collect::<Vec<_>>()
        };
        parsed.map(drop).map_err(told)
    };
    assert_eq!(dut("fastboot"), Ok(()));
    assert_eq!(dut("fastboot, usb: {path: 1-4.2}, variables: {product: 'a|b'}"), Ok(()));
    assert_eq!(
        dut("fastboot, tcp: {port: 0}, usb: {path: usb1}, variables: {'a b': x}"),
        Err(vec![
            "duts[0].boot.tcp.port: `0` is out of range".to_owned(),
            "duts[0].boot.usb: a loader is reached by `tcp` or by `usb`, not by both".to_owned(),
            "duts[0].boot.usb.path: `usb1` is no place on USB".to_owned(),
            "duts[0].boot.variables.a b: `a b` is no name of a variable".to_owned(),
        ])
    );
    assert_eq!(
        dut("ipxe, tcp: {}"),
        Err(vec!["duts[0].boot.tcp: `tcp` means nothing to the boot method `ipxe`".to_owned()])
    );
}

#[test]
fn a_boots_database_that_is_not_there_is_told() {
    let farm = "name: lab\nnetwork: {loopback: {}}\nboots: nowhere.yml\nduts: []\n";
    let problems = crate::config::parse("farm.yml", farm, Path::new("")).map(drop).expect_err("it is wrong");
    assert_eq!(problems.list()[0].what, "cannot read `nowhere.yml`: No such file or directory (os error 2)");
}
