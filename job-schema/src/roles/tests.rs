//! Jobs over several DUTs, from their text: who plays what, what each role says itself, and what is refused.

use std::time::Duration;

use super::*;
use crate::problem::Location;
use crate::{Limits, Variables, render};

const TWO: &str = "\
deadline: 2026-11-21 18:00:00
target:
  - role: server
    tags: [net:10g]
    count: 2
    gear: [switch]
    timeouts: {boot_cycle: {minutes: 7}}
    deployment: {start: {kernel: {data: server-kernel}}}
  - role: client
    id: box
    console_patterns: {job_success: {regex: '^done$'}}
timeouts: {overall: {minutes: 20}, boot_cycle: {minutes: 3}}
console_patterns: {session_end: {regex: '^over$'}}
deployment: {start: {kernel: {data: k}}, continue: {kernel: {cmdline: again}}}
proxy: {allowed_endpoints: ['example.org:443']}
";

fn rendered(text: &str) -> Rendered {
    Rendered::plain("job.yml", text)
}

fn parse(text: &str) -> Roles {
    Job::parse_all(&rendered(text)).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Line, field and text of all problems of a job whose `target` is `target`.
fn problems(text: &str) -> Vec<String> {
    let problems = Job::parse_all(&rendered(text)).expect_err("a bad job");
    let line = |location: Option<Location>| location.map_or(0, |location| location.line);
    problems.list().iter().map(|told| format!("{} {}: {}", line(told.location), told.field, told.what)).collect()
}

/// A job over the roles of this flow list.
fn listed(roles: &str) -> String {
    format!("target: {roles}\nconsole_patterns: {{}}\ndeployment: {{start: {{}}}}\n")
}

#[test]
fn a_role_with_a_count_is_played_by_that_many_duts_in_order() {
    let roles = parse(TWO);
    assert_eq!(roles.names().collect::<Vec<_>>(), ["server-1", "server-2", "client"]);
    let played: Vec<&str> = roles.list.iter().filter_map(|role| role.role.as_ref()).map(RoleName::as_str).collect();
    assert_eq!(played, ["server", "server", "client"]);
    assert_eq!(roles.list[0].job, roles.list[1].job);
    assert_eq!(roles.start, StartBarrier::Together);
    assert_eq!(Roles::names_in(&rendered(TWO)), ["server-1", "server-2", "client"]);
    // Before the roles' addresses are known, `http://{{ roles.server.ip_address }}/k` has no host; the names are there nevertheless.
    let early = TWO.replace("{data: k}", "{url: 'http:///k'}");
    assert_eq!(Roles::names_in(&rendered(&early)).len(), 3);
    assert!(Job::parse_all(&rendered(&early)).is_err());
    let one = parse(&listed("[{role: server, tags: [], count: 1}]"));
    assert_eq!(one.names().collect::<Vec<_>>(), ["server"]);
}

#[test]
fn each_role_has_a_whole_job() {
    let roles = parse(TWO);
    let (server, client) = (&roles.list[0].job, &roles.list[2].job);
    let target = |id: Option<&str>, tags: &[&str], gear: &[&str]| Target {
        id: id.map(str::to_owned),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        gear: gear.iter().map(|&name| name.to_owned()).collect(),
    };
    assert_eq!(server.target, target(None, &["net:10g"], &["switch"]));
    assert_eq!(client.target, target(Some("box"), &[], &[]));
    for job in [server, client] {
        assert_eq!(job.deadline.map(|deadline| deadline.to_string()).as_deref(), Some("2026-11-21T18:00:00Z"));
        assert_eq!(job.proxy.len(), 1);
    }
}

#[test]
fn what_a_role_says_stands_in_the_place_of_what_the_job_says_as_a_whole() {
    let roles = parse(TWO);
    let (server, client) = (&roles.list[0].job, &roles.list[2].job);
    let minutes = |number: u64| Some(Duration::from_secs(number * 60));
    assert_eq!(server.timeouts.boot_cycle.duration, minutes(7));
    assert_eq!(server.timeouts.overall.duration, minutes(360), "the job's 20 minutes do not shine through");
    assert_eq!((client.timeouts.boot_cycle.duration, client.timeouts.overall.duration), (minutes(3), minutes(20)));
    assert_eq!(server.patterns.session_end.as_str(), "^over$");
    assert_eq!(client.patterns.session_end.as_str(), crate::job::DEFAULT_SESSION_END);
    assert!(client.patterns.job_success.is_some() && server.patterns.job_success.is_none());
    let kernel = |job: &Job| job.start.kernel.clone().map(|kernel| kernel.artifact.source);
    assert_eq!(kernel(server), Some(crate::job::ArtifactSource::Data("server-kernel".to_owned())));
    assert_eq!(server.continue_, server.start);
    assert_eq!(client.continue_.cmdline_text(), "again");
}

#[test]
fn the_top_level_may_be_silent_where_every_role_speaks() {
    let own = "console_patterns: {}, deployment: {start: {}}";
    let roles = parse(&format!("target: [{{role: a, tags: [], {own}}}, {{role: b, tags: [], {own}}}]\n"));
    assert_eq!(roles.list.len(), 2);
    let text = format!("target:\n- {{role: a, tags: [], {own}}}\n- {{role: b, tags: [], console_patterns: {{}}}}\n");
    assert_eq!(problems(&text), ["3 target[1].deployment: the key `deployment` is missing, here and at the top level"]);
}

#[test]
fn a_single_target_is_a_list_of_one_without_a_name() {
    let roles = parse(&listed("{tags: [a], gear: [meter, switch-2]}"));
    let [Role { name: None, role: None, job, .. }] = &roles.list[..] else { panic!("{roles:?}") };
    assert_eq!(job.target.gear, ["meter", "switch-2"]);
    assert_eq!(Roles::names_in(&rendered(&listed("{tags: []}"))), Vec::<String>::new());
    assert_eq!(Roles::names_in(&rendered(": : :")), Vec::<String>::new());
}

#[test]
fn duts_start_together_unless_the_job_says_otherwise() {
    for (text, start) in [("no", StartBarrier::Apart), ("true", StartBarrier::Together), ("", StartBarrier::Together)] {
        let job = format!("start_together: {text}\n{}", listed("[{role: a, tags: []}]"));
        assert_eq!(parse(&job).start, start, "{text}");
    }
    let alone = format!("start_together: true\n{}", listed("{tags: []}"));
    assert_eq!(problems(&alone), ["1 start_together: a job with a single target has nobody to start with"]);
}

#[test]
fn a_list_of_roles_is_no_job_for_one_machine() {
    let told = |name: Option<&str>, text: &str| {
        let problems = Job::parse_as(&rendered(text), name).expect_err("not this one");
        (problems.list()[0].location.map(|place| place.line), problems.list()[0].what.clone())
    };
    let what = "the job has the roles `server-1`, `server-2` and `client`, where a job for one machine is wanted";
    assert_eq!(told(None, TWO), (Some(3), what.to_owned()));
    let what = "rendered for `server`, the job has only the roles `server-1`, `server-2` and `client`";
    assert_eq!(told(Some("server"), TWO), (Some(3), what.to_owned()));
    let what = "the job has a single target, and no role `server`";
    assert_eq!(told(Some("server"), &listed("{tags: []}")), (Some(1), what.to_owned()));
    let client = Job::parse_as(&rendered(TWO), Some("client")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(client.target.id.as_deref(), Some("box"));
}

#[test]
fn names_and_machines_are_asked_for_once() {
    let twice = "`server-1` names a machine of the role `server` already";
    let table = [
        ("[{role: a, tags: []}, {role: a, tags: []}]", "1 target[1].role: the role `a` stands twice".to_owned()),
        ("[{role: server, tags: [], count: 2}, {role: server-1, tags: []}]", format!("1 target[1].role: {twice}")),
        (
            "[{role: server-2, tags: []}, {role: server, tags: [], count: 2}]",
            "1 target[1].role: `server-2` names a machine of the role `server-2` already".to_owned(),
        ),
        (
            "[{role: a, id: box}, 7, {role: b, id: box}]",
            "1 target[2].id: the machine `box` is asked for by another role already".to_owned(),
        ),
        (
            "[{role: a, id: box, count: 2}]",
            "1 target[0].count: `2` machines are asked for, and all are to be `box`".to_owned(),
        ),
    ];
    for (roles, expected) in table {
        let told = problems(&listed(roles));
        assert!(told.contains(&expected), "{roles}: {told:?}");
    }
}

#[test]
fn a_job_has_at_least_one_and_at_most_32_duts() {
    assert_eq!(problems(&listed("[]")), ["1 target: no role is listed"]);
    let many = |counts: &[u32]| {
        let roles =
            counts.iter().enumerate().map(|(index, count)| format!("{{role: r{index}, tags: [], count: {count}}}"));
        listed(&format!("[{}]", roles.collect::<Vec<_>>().join(", ")))
    };
    assert_eq!(parse(&many(&[16, 16])).list.len(), 32);
    assert_eq!(problems(&many(&[16, 16, 1])), ["1 target: `33` machines are asked for; a job has at most 32"]);
    assert_eq!(Roles::names_in(&rendered(&many(&[16, 16, 16]))).len(), 32);
    assert_eq!(
        problems(&many(&[17, 0])),
        ["1 target[0].count: `17` is out of range", "1 target[1].count: `0` is out of range"]
    );
}

#[test]
fn the_schema_for_editors_wants_a_deployment_here_or_in_each_role_without_steps() {
    let schema = json_schema();
    let either = |key: &str| {
        serde_json::json!({"anyOf": [
            {"required": [key]},
            {"properties": {"target": {"type": "array", "items": {"anyOf": [{"required": [key]}, {"required": ["steps"]}]}}},
                "additionalProperties": true},
        ]})
    };
    assert_eq!(schema["allOf"], serde_json::json!([either("console_patterns"), either("deployment")]));
    let role = &schema["$defs"]["RoleKeys"];
    assert_eq!(role["required"], serde_json::json!(["role"]));
    assert_eq!(role["x-at-least-one"], serde_json::json!(["id", "tags"]));
    assert_eq!(role["additionalProperties"], serde_json::json!(false));
    assert_eq!(role["properties"]["count"]["maximum"], 16);
    let forms = schema["$defs"]["Target"]["anyOf"].as_array().map(Vec::len);
    assert_eq!(forms, Some(2));
}

#[test]
fn a_template_reaches_the_other_roles_by_their_names() {
    let mut variables = Variables::new();
    variables.insert("role", "client");
    variables.insert(
        "roles",
        serde_json::json!({"server-1": {"ip_address": "10.0.0.7"}, "client": {"ip_address": "10.0.0.8"}}),
    );
    let text = "{{ role }} {{ roles['server-1'].ip_address }} {{ roles[role].ip_address }} {{ roles.client.ip_address }}[{{ roles.nobody.id }}] \
        {% for name, dut in roles | items %}{{ name }}={{ dut.ip_address }} {% endfor %}";
    let rendered =
        render("job.yml", text, &variables, &Limits::default()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(rendered.text, "client 10.0.0.7 10.0.0.8 10.0.0.8[] server-1=10.0.0.7 client=10.0.0.8 ");
}
