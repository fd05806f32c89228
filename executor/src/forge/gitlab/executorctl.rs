//! What CI-tron's `dut.yml` would have called its client with: of that the shared folder and the groups of buckets mean something here. ◆
//!
//! ```text
//!  CI_TRON_EXECUTORCTL_EXTRA_ARGS__SHARE_FOLDER="--share-directory ./" ─┐ in the order of their names,
//!  CI_TRON_EXECUTORCTL_EXTRA_ARGS__…                                    ├ split at white space, as its script does
//!  CI_TRON_S3_CREDENTIALS=KEY:SECRET, CI_TRON_S3_GROUPS_ADD=a,b ────────┘
//! ```

use super::ci_tron::Environment;
use crate::config::BucketMember;

/// The client's options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// A folder of the job's, as it is written.
    pub share: Option<String>,
    /// Whose buckets the job's DUT may use besides its own.
    pub groups: Vec<String>,
    /// Who says that he is a member of them.
    pub member: Option<BucketMember>,
    /// Options that mean nothing here.
    pub passed_over: Vec<String>,
}

/// What the variables say; the error is a sentence.
pub(super) fn options(environ: &Environment) -> Result<Options, String> {
    let said = |name: &str| environ.get(name).map_or("", String::as_str);
    let extra = environ.iter().filter(|(name, _)| name.starts_with("CI_TRON_EXECUTORCTL_EXTRA_ARGS__"));
    let mut words = extra.flat_map(|(_, value)| value.split_whitespace());
    let mut options = Options::default();
    let mut credentials = said("CI_TRON_S3_CREDENTIALS");
    while let Some(word) = words.next() {
        let (name, joined) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let mut value = || {
            let value = joined.or_else(|| words.next());
            value.ok_or_else(|| format!("CI_TRON_EXECUTORCTL_EXTRA_ARGS: nothing follows `{name}`"))
        };
        match name {
            "-s" | "--share-directory" => options.share = Some(value()?.to_owned()),
            "-g" | "--minio-group" => options.groups.push(value()?.to_owned()),
            "-a" | "--minio-auth" => credentials = value()?,
            _ => options.passed_over.push(word.to_owned()),
        }
    }
    // Without credentials the template does not look at it.
    if !said("CI_TRON_S3_CREDENTIALS").is_empty() {
        let groups = said("CI_TRON_S3_GROUPS_ADD").split([',', ' ']).filter(|group| !group.is_empty());
        options.groups.extend(groups.map(str::to_owned));
    }
    options.member = match credentials {
        "" => None,
        text => {
            let (key, secret) = text.split_once(':').ok_or("CI_TRON_S3_CREDENTIALS is to be `KEY:SECRET`")?;
            Some(BucketMember { access_key: key.to_owned(), secret_key: secret.to_owned() })
        }
    };
    Ok(options)
}

/// A folder below the job's, without a slash at either end: empty, it is all of it. `None`: it lies elsewhere.
pub(super) fn below(share: &str, project_dir: &str) -> Option<String> {
    let inner = match share.strip_prefix('/') {
        Some(_) => share.strip_prefix(project_dir).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
        None => share,
    };
    let steps: Vec<&str> = inner.split('/').filter(|step| !matches!(*step, "" | ".")).collect();
    (!steps.contains(&"..")).then(|| steps.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[(&str, &str)]) -> Result<Options, String> {
        options(&all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn options_are_read_as_the_templates_script_passes_them() {
        let own = "CI_TRON_EXECUTORCTL_EXTRA_ARGS__SHARE_FOLDER";
        let read = of(&[
            (own, "--share-directory ./results"),
            ("CI_TRON_EXECUTORCTL_EXTRA_ARGS__MORE", "--new -g one"),
            ("CI_TRON_S3_CREDENTIALS", "me:it:self"),
            ("CI_TRON_S3_GROUPS_ADD", "two,three"),
        ]);
        let member = BucketMember { access_key: "me".into(), secret_key: "it:self".into() };
        let expected = Options {
            share: Some("./results".into()),
            groups: ["one", "two", "three"].map(str::to_owned).into(),
            member: Some(member),
            passed_over: vec!["--new".into()],
        };
        assert_eq!(read, Ok(expected));
        assert_eq!(of(&[("CI_TRON_S3_GROUPS_ADD", "two")]), Ok(Options::default()));
        assert_eq!(of(&[(own, "-s")]), Err("CI_TRON_EXECUTORCTL_EXTRA_ARGS: nothing follows `-s`".to_owned()));
    }

    #[test]
    fn a_shared_folder_is_one_of_the_jobs() {
        let below = |share: &str| super::below(share, "/builds/g/p");
        for (share, expected) in [("./", ""), (".", ""), ("./out/dut/", "out/dut"), ("/builds/g/p/out", "out")] {
            assert_eq!(below(share).as_deref(), Some(expected), "{share}");
        }
        for share in ["../p", "out/../..", "/etc", "/builds/g/project"] {
            assert_eq!(below(share), None, "{share}");
        }
    }
}
