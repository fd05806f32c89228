//! What of the farm file is about who may call: the operator's listener, the forges whose word counts, what each project may use.

use super::*;
use crate::callers::Role;
use crate::config::{IssuerConfig, OTHERS, ProjectConfig, Refs, RuleConfig, TlsConfig};

/// Who may call, besides who has a token.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct CallersKeys {
    /// Forges whose id_tokens are believed.
    issuers: Vec<IssuerKeys>,
}

/// A forge whose id_tokens are believed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["issuer", "audience", "rules"], "x-lenient" = true))]
struct IssuerKeys {
    /// Its address, as its id_tokens have it in `iss`, letter by letter.
    #[schemars(extend("x-example" = "issuer: https://gitlab.example.com"))]
    issuer: String,
    /// What its id_tokens must have in `aud`: say the farm's own address.
    #[schemars(extend("x-example" = "audience: https://farm.example.com"))]
    audience: String,
    /// How long the token lasts for which an id_token is exchanged; as long as the id_token when absent.
    #[schemars(with = "Option<LengthForm>")]
    session: Option<f64>,
    /// Who may do what; the first that fits counts.
    #[schemars(extend("x-example" = "rules: [{project: mesa, role: submit, claims: {project_id: 42}}]"))]
    rules: Vec<RuleKeys>,
}

/// Who of a forge may do what.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["project", "role", "claims"], "x-lenient" = true))]
struct RuleKeys {
    /// In whose name he acts.
    #[schemars(extend("x-example" = "project: mesa"))]
    project: String,
    /// What he may do.
    #[schemars(extend("x-example" = "role: submit"))]
    role: Option<Role>,
    /// What the id_token must say.
    #[schemars(with = "BTreeMap<String, ClaimForm>", extend("x-example" = "claims: {project_id: 42}"))]
    claims: Option<BTreeMap<String, String>>,
    /// From which refs; `protected` when absent.
    refs: Option<RefsKey>,
}

/// The schema of a claim's value: an id is a number to most people, and text to most forges.
struct ClaimForm;

impl JsonSchema for ClaimForm {
    fn schema_name() -> Cow<'static, str> {
        "Claim".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer", "boolean"], "x-form": "loose-text" })
    }
}

/// The refs whose jobs are taken.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum RefsKey {
    /// Those that the forge protects.
    Protected,
    /// All of them.
    Any,
}

/// What a project may use.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct ProjectKeys {
    /// Leases at a time; as many as there are when absent.
    #[schemars(range(min = 1, max = 100_000))]
    running: Option<u32>,
    /// Requests that wait; as many as come when absent.
    #[schemars(range(min = 1, max = 1_000_000))]
    queued: Option<u32>,
    /// With twice the share it gets twice the machine-time; 1 when absent.
    #[schemars(range(min = 1, max = 1000))]
    share: Option<u32>,
    /// The DUTs, gear, hosts and kinds of machines on demand that it may use, by name; all when absent.
    blueprints: Option<Vec<String>>,
}

/// How the operator's listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TlsKey {
    /// TLS with a certificate of the farm's own authority.
    Own,
    /// In clear.
    None,
}

/// Claims that say who it is and cannot be given to somebody else. One of them is in every rule.
const IDS: &[&str] =
    &["actor_id", "enterprise_id", "namespace_id", "project_id", "repository_id", "repository_owner_id", "user_id"];

/// Claims that are names, each with the id that says the same for ever.
const NAMES: &[(&str, &str)] = &[
    ("actor", "actor_id"),
    ("enterprise", "enterprise_id"),
    ("namespace_path", "namespace_id"),
    ("project_path", "project_id"),
    ("repository", "repository_id"),
    ("repository_owner", "repository_owner_id"),
    ("sub", "project_id"),
    ("user_email", "user_id"),
    ("user_login", "user_id"),
];

/// The forges whose word counts.
pub(super) fn issuers(keys: &CallersKeys, findings: &mut Findings) -> Vec<IssuerConfig> {
    let mut checked: Vec<IssuerConfig> = Vec::new();
    for (index, issuer) in keys.issuers.iter().enumerate() {
        let at = |key: &str| ["callers", "issuers", &index.to_string(), key].map(str::to_owned).to_vec();
        if !issuer.issuer.is_empty() && !is_safe(&issuer.issuer) {
            let what = format!("the keys of `{}` would come over an unprotected connection", issuer.issuer);
            findings.tell(&at("issuer"), what, "write `https://` and its host");
        }
        if checked.iter().any(|other| other.issuer == issuer.issuer) {
            findings.tell(&at("issuer"), format!("`{}` is here twice", issuer.issuer), "put its rules together");
        }
        let rules = issuer.rules.iter().enumerate();
        checked.push(IssuerConfig {
            issuer: issuer.issuer.clone(),
            audience: issuer.audience.clone(),
            session: issuer.session.map(Duration::from_secs_f64),
            rules: rules
                .filter_map(|(number, keys)| rule(keys, &[at("rules"), vec![number.to_string()]].concat(), findings))
                .collect(),
        });
    }
    checked
}

/// The loopback is for a forge on the same host, and for trying.
fn is_safe(issuer: &str) -> bool {
    let loopback = ["http://127.", "http://localhost", "http://[::1]"];
    issuer.starts_with("https://") || loopback.iter().any(|start| issuer.starts_with(start))
}

fn rule(keys: &RuleKeys, at: &[String], findings: &mut Findings) -> Option<RuleConfig> {
    let claims = [at, &["claims".to_owned()]].concat();
    // One that is absent is told already.
    let said = keys.claims.as_ref()?;
    for (name, id) in NAMES.iter().filter(|(name, _)| said.contains_key(*name)) {
        let what = format!("`{name}` can be renamed, and then be taken by somebody else");
        findings.tell(&[&claims[..], &[(*name).to_owned()]].concat(), what, &format!("use `{id}`"));
    }
    if !IDS.iter().any(|id| said.contains_key(*id)) {
        let what = "no claim says whose job it is: everybody at this issuer could come".to_owned();
        findings.tell(&claims, what, &format!("add one of {}", IDS.join(", ")));
    }
    check_project(&keys.project, &[at, &["project".to_owned()]].concat(), findings);
    Some(RuleConfig {
        project: keys.project.clone(),
        role: keys.role?,
        claims: said.clone(),
        refs: match keys.refs {
            None | Some(RefsKey::Protected) => Refs::Protected,
            Some(RefsKey::Any) => Refs::Any,
        },
    })
}

fn check_project(name: &str, at: &[String], findings: &mut Findings) {
    if name == OTHERS {
        findings.tell(at, "`others` is everybody who has no entry".to_owned(), "choose another name");
    }
}

/// What each project may use.
pub(super) fn projects(keys: &BTreeMap<String, ProjectKeys>) -> BTreeMap<String, ProjectConfig> {
    let of = |keys: &ProjectKeys| ProjectConfig {
        running: keys.running,
        queued: keys.queued,
        share: keys.share,
        blueprints: keys.blueprints.clone(),
    };
    keys.iter().map(|(name, keys)| (name.clone(), of(keys))).collect()
}

/// How the operator's listener speaks.
pub(super) fn tls(keys: &ListenKeys, directory: &Path, findings: &mut Findings) -> TlsConfig {
    let at = |key: &str| ["listen".to_owned(), key.to_owned()];
    match (&keys.certificate, &keys.key, keys.tls) {
        (Some(certificate), Some(key), None) => {
            TlsConfig::Files { certificate: directory.join(certificate), key: directory.join(key) }
        }
        (Some(_), None, _) => {
            findings.tell(&at("certificate"), "a certificate without its key".to_owned(), "add `key:`");
            TlsConfig::None
        }
        (None, Some(_), _) => {
            findings.tell(&at("key"), "a key without its certificate".to_owned(), "add `certificate:`");
            TlsConfig::None
        }
        (Some(_), Some(_), Some(_)) => {
            let hint = "leave `tls` out, or `certificate` and `key`";
            findings.tell(&at("tls"), "files, and something else than files".to_owned(), hint);
            TlsConfig::None
        }
        (None, None, Some(TlsKey::None)) => TlsConfig::None,
        (None, None, Some(TlsKey::Own)) => TlsConfig::Own(keys.names.clone()),
        (None, None, None) if !keys.names.is_empty() => TlsConfig::Own(keys.names.clone()),
        (None, None, None) => TlsConfig::Usual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FARM: &str = "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\nduts: []\n";

    fn farm(text: &str) -> Result<FarmConfig, String> {
        parse("farm.yml", &format!("{FARM}{text}"), Path::new("/farm")).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_rule_is_made_of_ids_and_of_protected_refs_unless_it_says_otherwise() {
        let text = "callers:\n  issuers:\n    - issuer: https://gitlab.example.com\n      audience: https://farm.example.com\n      \
                    session: 2 h\n      rules:\n        - {project: mesa, role: submit, claims: {project_id: 42}}\n        \
                    - {project: mesa, role: operate, refs: any, claims: {user_id: 7, environment: lab}}\n";
        let issuers = farm(text).unwrap().issuers;
        let [issuer] = &issuers[..] else { panic!("{issuers:?}") };
        assert_eq!(
            (issuer.issuer.as_str(), issuer.session),
            ("https://gitlab.example.com", Some(Duration::from_secs(7200)))
        );
        let [first, second] = &issuer.rules[..] else { panic!("{issuer:?}") };
        assert_eq!(
            (first.role, first.refs, first.claims["project_id"].as_str()),
            (Role::Submit, Refs::Protected, "42")
        );
        assert_eq!((second.role, second.refs), (Role::Operate, Refs::Any));
    }

    #[test]
    fn a_rule_by_names_or_for_everybody_is_a_mistake() {
        let rules = |rule: &str| {
            farm(&format!("callers: {{issuers: [{{issuer: 'https://a', audience: b, rules: [{rule}]}}]}}")).unwrap_err()
        };
        let told = rules("{project: mesa, role: submit, claims: {project_path: mesa/mesa}}");
        assert!(told.contains("`project_path` can be renamed, and then be taken by somebody else"), "{told}");
        assert!(told.contains("use `project_id`") && told.contains("no claim says whose job it is"), "{told}");
        let told = rules("{project: mesa, role: administer, claims: {}}");
        assert!(told.contains("no claim says whose job it is: everybody at this issuer could come"), "{told}");
        let told = rules("{project: others, role: submit, claims: {project_id: 1}}");
        assert!(told.contains("`others` is everybody who has no entry"), "{told}");
        let told = rules("{project: mesa, role: root, claims: {project_id: 1}}");
        assert!(told.contains("role"), "{told}");
        let told =
            farm("callers: {issuers: [{issuer: 'http://gitlab.example.com', audience: b, rules: []}]}").unwrap_err();
        assert!(told.contains("would come over an unprotected connection"), "{told}");
    }

    #[test]
    fn tls_is_of_files_or_of_the_farms_own_authority() {
        assert_eq!(farm("").unwrap().tls, TlsConfig::Usual);
        assert_eq!(farm("listen: {tls: none}").unwrap().tls, TlsConfig::None);
        assert_eq!(farm("listen: {names: [farm.lan]}").unwrap().tls, TlsConfig::Own(vec!["farm.lan".into()]));
        let files = TlsConfig::Files { certificate: "/farm/a.pem".into(), key: "/etc/b.pem".into() };
        assert_eq!(farm("listen: {certificate: a.pem, key: /etc/b.pem}").unwrap().tls, files);
        assert!(farm("listen: {certificate: a.pem}").unwrap_err().contains("a certificate without its key"));
        assert!(farm("listen: {certificate: a, key: b, tls: own}").unwrap_err().contains("files, and something else"));
    }

    #[test]
    fn a_project_has_limits_a_share_and_what_it_may_use() {
        let projects = farm(
            "projects:\n  mesa: {running: 4, queued: 100, share: 2, blueprints: [left]}\n  others: {running: 1}\n",
        );
        let projects = projects.unwrap().projects;
        let mesa = ProjectConfig {
            running: Some(4),
            queued: Some(100),
            share: Some(2),
            blueprints: Some(vec!["left".into()]),
        };
        assert_eq!(projects["mesa"], mesa);
        assert_eq!(projects["others"], ProjectConfig { running: Some(1), ..ProjectConfig::default() });
    }
}
