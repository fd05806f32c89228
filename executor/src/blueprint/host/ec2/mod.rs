//! A cloud with the EC2 API: Amazon's, and others that speak it. Four actions of its Query API, as forms that are posted and XML that
//! comes back.
//!
//! ```text
//!  make  RunInstances, ClientToken = the row's own, tags = whose it is and its name      asked twice, there is one
//!  find  DescribeInstances by tag and state                                              pending and running are there, the rest is not
//!  end   find ─► TerminateInstances
//!  list  DescribeInstances by tag                                                        what nobody remembers is ended
//! ```
//! API version 2016-11-15; <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/>.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::{BoxFuture, FutureExt};
use roxmltree::{Document, Node};

use super::provider::{Found, Provider, ProviderError, Wanted};
use crate::config::hosts::{Ec2Config, Reach};
use crate::ssh::command::quoted as in_quotes;
use sign::{Credentials, Signable};

pub mod sign;

/// A cloud that is busy answers within seconds.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Descriptions of a thousand instances.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The tag that says whose an instance is: `<farm>/<entry>`.
const OWNER_TAG: &str = "wharf:owner";
/// The tag with the host's name.
const NAME_TAG: &str = "wharf:host";
/// States in which an instance is there, or will be.
const ALIVE: [&str; 2] = ["pending", "running"];
/// Answers that a later attempt may change (the API's list of common errors, and of what has no room).
const PASSING: [&str; 7] = [
    "InsufficientInstanceCapacity",
    "InstanceLimitExceeded",
    "InternalError",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "Unavailable",
    "VcpuLimitExceeded",
];

/// One entry's part of a cloud.
pub struct Ec2 {
    config: Ec2Config,
    owner: String,
}

impl Ec2 {
    /// `owner`: the farm; `entry`: which of its entries.
    pub fn new(config: Ec2Config, owner: &str, entry: &str) -> Ec2 {
        Ec2 { config, owner: format!("{owner}/{entry}") }
    }

    async fn run(&self, wanted: &Wanted) -> Result<(), ProviderError> {
        let config = &self.config;
        let mut form = Form::of("RunInstances");
        form.add("ImageId", &config.image);
        form.add("InstanceType", &config.instance_type);
        form.add("MinCount", "1");
        form.add("MaxCount", "1");
        form.add("ClientToken", &wanted.token);
        form.add("UserData", &BASE64_STANDARD.encode(&wanted.user_data));
        // What ends itself is gone, and not kept stopped.
        form.add("InstanceInitiatedShutdownBehavior", "terminate");
        config.subnet.iter().for_each(|subnet| form.add("SubnetId", subnet));
        for (number, group) in (1..).zip(&config.security_groups) {
            form.add(&format!("SecurityGroupId.{number}"), group);
        }
        form.add("TagSpecification.1.ResourceType", "instance");
        let tags = [("Name", &wanted.name), (NAME_TAG, &wanted.name), (OWNER_TAG, &self.owner)];
        for (number, (key, value)) in (1..).zip(tags) {
            form.add(&format!("TagSpecification.1.Tag.{number}.Key"), key);
            form.add(&format!("TagSpecification.1.Tag.{number}.Value"), value);
        }
        self.ask(form).await.map(drop)
    }

    /// All of ours that are there; of one name, or of all.
    async fn describe(&self, name: Option<&str>) -> Result<Vec<Instance>, ProviderError> {
        let mut found = Vec::new();
        let mut page = None;
        loop {
            let mut form = Form::of("DescribeInstances");
            let tag = |tag: &str| format!("tag:{tag}");
            let mut filters = vec![(tag(OWNER_TAG), vec![self.owner.as_str()])];
            filters.push(("instance-state-name".to_owned(), ALIVE.to_vec()));
            filters.extend(name.map(|name| (tag(NAME_TAG), vec![name])));
            for (number, (filter, values)) in (1..).zip(&filters) {
                form.add(&format!("Filter.{number}.Name"), filter);
                for (which, value) in (1..).zip(values) {
                    form.add(&format!("Filter.{number}.Value.{which}"), value);
                }
            }
            page.iter().for_each(|page: &String| form.add("NextToken", page));
            let answer = self.ask(form).await?;
            let document = self.read(&answer)?;
            found.extend(instances(&document, self.config.reach));
            page = text_of(document.root_element(), "nextToken").filter(|page| !page.is_empty());
            if page.is_none() {
                return Ok(found);
            }
        }
    }

    async fn terminate(&self, name: &str) -> Result<(), ProviderError> {
        let found = self.describe(Some(name)).await?;
        if found.is_empty() {
            return Ok(());
        }
        let mut form = Form::of("TerminateInstances");
        for (number, instance) in (1..).zip(&found) {
            form.add(&format!("InstanceId.{number}"), &instance.found.id);
        }
        self.ask(form).await.map(drop)
    }

    /// Sends a form, signed. What the cloud says no to is told in its own words.
    async fn ask(&self, form: Form) -> Result<String, ProviderError> {
        let not_now = |why: String| ProviderError::NotNow(format!("{}: {why}", self.config.endpoint));
        let credentials = credentials(&self.config).map_err(ProviderError::Never)?;
        let url: reqwest::Url = self
            .config
            .endpoint
            .parse()
            .map_err(|error| ProviderError::Never(format!("{}: {error}", self.config.endpoint)))?;
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let (body, region) = (form.0, &self.config.region);
        let signable = Signable { host: &host, path: url.path(), body: &body, at: &at, region, service: "ec2" };
        let signed = sign::headers(&credentials, signable);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client =
            reqwest::Client::builder().timeout(ANSWER_TIME).build().map_err(|error| not_now(in_full(&error)))?;
        let mut request = client.post(url).header("content-type", sign::CONTENT_TYPE).body(body);
        for (name, value) in signed {
            request = request.header(name, value);
        }
        let mut answer = request.send().await.map_err(|error| not_now(in_full(&error)))?;
        let status = answer.status();
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| not_now(in_full(&error)))? {
            text.extend_from_slice(&chunk);
            if text.len() > ANSWER_BYTES_MAX {
                return Err(not_now(format!("it answers more than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        Err(self.refusal(status.as_u16(), &text))
    }

    fn refusal(&self, status: u16, text: &str) -> ProviderError {
        let told = Document::parse(text).ok();
        let said = |name| told.as_ref().and_then(|document| text_of(document.root_element(), name));
        let (code, message) = (said("Code").unwrap_or_else(|| status.to_string()), said("Message").unwrap_or_default());
        let what = format!("{} says {code}: {message}", self.config.endpoint);
        if status >= 500 || PASSING.contains(&code.as_str()) {
            ProviderError::NotNow(what)
        } else {
            ProviderError::Never(what)
        }
    }

    fn read<'a>(&self, text: &'a str) -> Result<Document<'a>, ProviderError> {
        Document::parse(text)
            .map_err(|error| ProviderError::NotNow(format!("{} answers no XML: {error}", self.config.endpoint)))
    }
}

impl Provider for Ec2 {
    fn make<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.run(wanted).boxed()
    }

    fn find<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Found>, ProviderError>> {
        async move { Ok(self.describe(Some(name)).await?.into_iter().next().map(|instance| instance.found)) }.boxed()
    }

    fn end<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.terminate(name).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>> {
        async move { Ok(self.describe(None).await?.into_iter().map(|instance| instance.name).collect()) }.boxed()
    }
}

/// An instance as the cloud describes it.
struct Instance {
    name: String,
    found: Found,
}

fn instances(document: &Document, reach: Reach) -> Vec<Instance> {
    let address = match reach {
        Reach::Private => "privateIpAddress",
        Reach::Public => "ipAddress",
    };
    let items = document.descendants().filter(|node| node.has_tag_name_of("item"));
    let ours = items.filter(|node| node.parent().is_some_and(|parent| parent.has_tag_name_of("instancesSet")));
    let read = |node: Node| {
        let tags = node.children().find(|child| child.has_tag_name_of("tagSet"))?;
        let name = tags.children().find(|tag| text_of(*tag, "key").as_deref() == Some(NAME_TAG))?;
        let found = Found { id: text_of(node, "instanceId")?, address: text_of(node, address), port: None };
        Some(Instance { name: text_of(name, "value")?, found })
    };
    ours.filter_map(read).collect()
}

/// The text of a direct child.
fn text_of(node: Node, name: &str) -> Option<String> {
    let direct = node.children().find(|child| child.has_tag_name_of(name));
    // Errors are wrapped in some elements more.
    let found = direct.or_else(|| {
        node.descendants().find(|child| child.has_tag_name_of(name)).filter(|_| node.parent_element().is_none())
    });
    found.and_then(|child| child.text()).map(str::to_owned)
}

/// Names without their namespace, which says the API's version.
trait LocalName {
    fn has_tag_name_of(&self, name: &str) -> bool;
}

impl LocalName for Node<'_, '_> {
    fn has_tag_name_of(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

/// Where the keys are: a file of two lines, or the environment.
fn credentials(config: &Ec2Config) -> Result<Credentials, String> {
    let Some(path) = &config.credentials else {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let needed = |name: &str| {
            variable(name).ok_or_else(|| {
                format!("the server's environment has no {name}; set it, or name a file as `credentials`")
            })
        };
        return Ok(Credentials {
            access_key_id: needed("AWS_ACCESS_KEY_ID")?,
            secret_access_key: needed("AWS_SECRET_ACCESS_KEY")?,
            session_token: variable("AWS_SESSION_TOKEN"),
        });
    };
    let shown = in_quotes(&path.display().to_string());
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let value = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let mut named = lines.filter(|(key, _)| key.trim().trim_start_matches("aws_") == name);
        named.next().map(|(_, value)| value.trim().to_owned())
    };
    let needed = |name: &str| value(name).ok_or_else(|| format!("{shown} has no line `{name} = …`"));
    Ok(Credentials {
        access_key_id: needed("access_key_id")?,
        secret_access_key: needed("secret_access_key")?,
        session_token: value("session_token"),
    })
}

/// A form of the Query API.
struct Form(String);

impl Form {
    fn of(action: &str) -> Form {
        let mut form = Form(String::new());
        form.add("Action", action);
        form.add("Version", "2016-11-15");
        form
    }

    fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(&format!("{}={}", escaped(name), escaped(value)));
    }
}

/// RFC 3986 §2.3: unreserved characters stay.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud() -> Ec2 {
        let config = Ec2Config {
            endpoint: "https://ec2.example".into(),
            region: "eu-central-1".into(),
            credentials: None,
            image: "ami-1".into(),
            instance_type: "t3.micro".into(),
            subnet: None,
            security_groups: Vec::new(),
            reach: Reach::Private,
        };
        Ec2::new(config, "lab-0011", "cloud")
    }

    #[test]
    fn an_instance_is_known_by_its_tag_and_reached_at_the_address_that_was_asked_for() {
        let text = r#"<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet><item><instancesSet>
            <item><instanceId>i-1</instanceId><privateIpAddress>10.0.0.7</privateIpAddress><ipAddress>198.51.100.7</ipAddress>
              <groupSet><item><groupId>sg-1</groupId></item></groupSet>
              <tagSet><item><key>Name</key><value>x</value></item><item><key>wharf:host</key><value>cloud-1</value></item></tagSet></item>
            <item><instanceId>i-2</instanceId><tagSet><item><key>wharf:host</key><value>cloud-2</value></item></tagSet></item>
            <item><instanceId>i-3</instanceId></item>
            </instancesSet></item></reservationSet></DescribeInstancesResponse>"#;
        let document = Document::parse(text).unwrap();
        let seen = |reach| {
            let found = instances(&document, reach).into_iter();
            found.map(|it| (it.name, it.found.id, it.found.address.unwrap_or_default())).collect::<Vec<_>>()
        };
        let expected = |address: &str| {
            vec![
                ("cloud-1".to_owned(), "i-1".to_owned(), address.to_owned()),
                ("cloud-2".to_owned(), "i-2".to_owned(), String::new()),
            ]
        };
        assert_eq!(seen(Reach::Private), expected("10.0.0.7"));
        assert_eq!(seen(Reach::Public), expected("198.51.100.7"));
    }

    #[test]
    fn a_refusal_is_told_in_the_clouds_words_and_says_whether_waiting_helps() {
        let answer = |code: &str| {
            format!("<Response><Errors><Error><Code>{code}</Code><Message>told</Message></Error></Errors></Response>")
        };
        assert_eq!(
            cloud().refusal(400, &answer("InvalidAMIID.NotFound")),
            ProviderError::Never("https://ec2.example says InvalidAMIID.NotFound: told".into())
        );
        assert_eq!(
            cloud().refusal(400, &answer("InsufficientInstanceCapacity")),
            ProviderError::NotNow("https://ec2.example says InsufficientInstanceCapacity: told".into())
        );
        assert_eq!(cloud().refusal(503, "busy"), ProviderError::NotNow("https://ec2.example says 503: ".into()));
    }

    #[test]
    fn a_form_is_one_line_whatever_it_holds() {
        let mut form = Form::of("RunInstances");
        form.add("Filter.1.Name", "tag:a b&c=ü");
        assert_eq!(form.0, "Action=RunInstances&Version=2016-11-15&Filter.1.Name=tag%3Aa%20b%26c%3D%C3%BC");
    }
}
