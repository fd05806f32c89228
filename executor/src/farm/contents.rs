//! What a job's artifacts are made of: downloads, files that came along, archives and images made of them.
//!
//! ```text
//!  Prepared ── Farm::fetch ─► downloads begun, edits made, ports opened ─► Contents ── of(entry of the plan) ─► Content
//!                               └─ what the firmware needs is whole by then; other URLs have answered, and stream on
//!  an entry whose artifact uses its path's groups, or is a template: nothing before it is asked for; then by its name
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::FutureExt;
use gateway::content::cache::Cached;
use gateway::content::edit::{Addition, Edited, Recipe, Rework, Step};
use gateway::content::{ByName, Content, ContentError};
use gateway::namespace::{Name, Origin, Protocol};
use gateway::{Addresses, OpenPort};
use job_schema::job::{
    Archive, ArchiveFormat, ArchiveMember, Artifact, ArtifactSource, FormatStep, Groups, Keep, PathMatch,
};
use job_schema::pattern::Pattern;

use super::downloads::Downloads;
use super::egress::AuditTrail;
use super::prepare::Prepared;
use super::texts::{self, Request, Served};
use super::{Attached, Farm, buckets};
use crate::boot::android::{BootImage, Piece, Sizes};
use crate::boot::{Planned, Source};
use crate::job_log::{JobEvent, JobLog};
use crate::runner::SetupError;
use crate::session::Which;
use crate::verdict::Cause;

/// Files that came along with a job, by name.
pub(super) type Attachments = BTreeMap<String, Attached>;

impl Farm {
    /// Begins every download that a plan needs, makes what is made of others, and waits until what the firmware needs is there whole.
    /// Other URLs have answered by then, and stream to the DUT while they are still arriving.
    pub(super) async fn fetch(
        &self,
        log: &JobLog,
        prepared: &Prepared,
        trail: &Arc<AuditTrail>,
    ) -> Result<Contents, SetupError> {
        let from = Downloads::new(self.gateway.cache(), prepared.reach, trail);
        let mut downloads: BTreeMap<String, (Cached, Origin)> = BTreeMap::new();
        for planned in prepared.start.artifacts.iter().chain(&prepared.continue_.artifacts) {
            for url in urls(planned) {
                let entry = downloads.entry(url.to_owned()).or_insert_with(|| (from.fetch(url), planned.origin));
                if planned.origin == Origin::Generated {
                    entry.1 = Origin::Generated;
                }
            }
        }
        for url in
            buckets::declared(&prepared.job).into_iter().filter_map(|bucket| bucket.fill.as_ref()).flat_map(urls_of)
        {
            downloads.entry(url.to_owned()).or_insert_with(|| (from.fetch(url), Origin::Job));
        }
        let failed = |reason: String| SetupError { cause: Cause::Artifact, reason };
        for (url, (cached, origin)) in &downloads {
            wait_for(log, url, cached, *origin).await.map_err(|error| {
                from.note(&error);
                failed(error.to_string())
            })?;
        }
        let downloads = downloads.into_iter().map(|(url, (cached, _))| (url, cached)).collect();
        let mut ports = Vec::new();
        for (protocol, port) in ports_of(prepared, self.gateway.addresses()) {
            let open = self.gateway.open_port(protocol, port).await;
            ports.push(open.map_err(|error| failed(format!("`expose`: {error}")))?);
        }
        let texts = Served::new(&prepared.source_name, &prepared.variables);
        let shelf = Shelf { downloads, from, edits: Mutex::default(), texts, _ports: ports };
        let contents = Contents(Arc::new(shelf));
        contents.make_all(prepared).await.map_err(failed)?;
        Ok(contents)
    }
}

/// Waits for one download, and says twice a second how far it is.
async fn wait_for(log: &JobLog, url: &str, cached: &Cached, origin: Origin) -> Result<(), ContentError> {
    let waiting = async {
        match origin {
            Origin::Generated => cached.wait_complete().await,
            Origin::Job => cached.ready().await,
        }
    };
    tokio::pin!(waiting);
    let mut told = None;
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            result = &mut waiting => {
                tell_download(log, url, cached, &mut told);
                return result;
            }
            _ = tick.tick() => tell_download(log, url, cached, &mut told),
        }
    }
}

fn tell_download(log: &JobLog, url: &str, cached: &Cached, told: &mut Option<u64>) {
    let progress = cached.state();
    if *told != Some(progress.bytes) {
        *told = Some(progress.bytes);
        log.append(JobEvent::Download { url: url.to_owned(), bytes: progress.bytes, total: progress.total });
    }
}

/// What a job's plan is served from; downloads are kept in the cache at least as long as this lives. Cheap to clone.
#[derive(Clone)]
pub(super) struct Contents(Arc<Shelf>);

struct Shelf {
    downloads: BTreeMap<String, Cached>,
    /// What further ones are begun with.
    from: Downloads,
    /// What was made, so that the next boot and the next name are the same thing.
    edits: Mutex<Vec<(Artifact, Edited)>>,
    /// What is rendered when it is asked for.
    texts: Served,
    /// Open for as long as something of this job may be read there.
    _ports: Vec<OpenPort>,
}

/// The ports that have to be opened: those that are not a server's own.
fn ports_of(prepared: &Prepared, own: Addresses) -> BTreeSet<(Protocol, u16)> {
    let is_own = |protocol, port| match protocol {
        Protocol::Http => own.http.is_some_and(|address| address.port() == port),
        Protocol::Tftp => own.tftp.is_some_and(|address| address.port() == port),
        Protocol::Fastboot | Protocol::Nbd | Protocol::Proxy | Protocol::Registry => true,
    };
    let all = prepared.start.artifacts.iter().chain(&prepared.continue_.artifacts);
    let exposed = all.filter_map(|planned| planned.exposure.port.map(|port| (planned.protocol, port)));
    exposed.filter(|(protocol, port)| !is_own(*protocol, *port)).collect()
}

impl Contents {
    /// What further downloads of the job are made with.
    pub(super) fn downloads(&self) -> &Downloads {
        &self.0.from
    }

    /// A boot begins, or goes on.
    pub(super) fn begin(&self, which: Which, boot: Option<u32>) {
        self.0.texts.begin(which, boot);
    }

    /// What an entry of the plan serves, or why it cannot.
    pub(super) fn of(&self, planned: &Planned, attachments: &Attachments) -> Result<Content, String> {
        match &planned.source {
            Source::Text(text) => Ok(Content::Inline(Bytes::from(text.clone()))),
            Source::Wrapped { bytes, .. } => Ok(Content::Inline(Bytes::from(bytes.clone()))),
            Source::Firmware(path) => Ok(Content::File(path.clone())),
            Source::Artifacts(artifacts) => match (path_to_ask_by(planned), artifacts.as_slice()) {
                (Some(path), [artifact]) => Ok(self.by_name(path, planned.protocol, artifact, attachments)),
                _ => self.joined(artifacts, attachments, Content::Joined),
            },
            Source::Archives(artifacts) => self.joined(artifacts, attachments, Content::Archives),
            Source::Android(image) => self.boot_image(image, attachments),
        }
    }

    /// What an artifact is that nobody asks for by a name.
    pub(super) fn of_artifact(&self, artifact: &Artifact, attachments: &Attachments) -> Result<Content, String> {
        self.artifact(artifact, attachments, None)
    }

    /// Makes what is made of others before the first boot, so that what cannot be made ends the setup.
    async fn make_all(&self, prepared: &Prepared) -> Result<(), String> {
        let artifacts = |source: &Source| match source {
            Source::Artifacts(artifacts) | Source::Archives(artifacts) => artifacts.clone(),
            Source::Android(image) => {
                std::iter::once(&image.kernel).chain(&image.ramdisk).chain(&image.dtb).cloned().collect()
            }
            Source::Text(_) | Source::Wrapped { .. } | Source::Firmware(_) => Vec::new(),
        };
        for planned in prepared.start.artifacts.iter().chain(&prepared.continue_.artifacts) {
            if path_to_ask_by(planned).is_some() {
                continue;
            }
            for artifact in artifacts(&planned.source) {
                if let Content::Edited(edited) = self.artifact(&artifact, &prepared.attachments, None)? {
                    edited.ready().await.map_err(|error| format!("{:?}: {error}", planned.name))?;
                }
            }
        }
        Ok(())
    }

    fn joined(
        &self,
        artifacts: &[Artifact],
        attachments: &Attachments,
        join: fn(Arc<[Content]>) -> Content,
    ) -> Result<Content, String> {
        let parts: Result<Vec<_>, _> =
            artifacts.iter().map(|artifact| self.artifact(artifact, attachments, None)).collect();
        let mut parts = parts?;
        Ok(if parts.len() == 1 { parts.remove(0) } else { join(parts.into()) })
    }

    /// What the groups of its path, or a template, make of an artifact is only known when it is asked for.
    fn by_name(&self, path: PathMatch, protocol: Protocol, artifact: &Artifact, attachments: &Attachments) -> Content {
        let (contents, artifact, attachments) = (self.clone(), artifact.clone(), attachments.clone());
        Content::ByName(ByName(Arc::new(move |name: &str| {
            let (contents, artifact, attachments) = (contents.clone(), artifact.clone(), attachments.clone());
            let (path, name) = (path.clone(), name.to_owned());
            async move {
                let made = contents.made_for(&path, Request { protocol, path: name.clone() }, artifact, &attachments);
                made.await.map_err(|reason| ContentError::Edit { what: format!("`{name}`"), reason })
            }
            .boxed()
        })))
    }

    async fn made_for(
        &self,
        path: &PathMatch,
        request: Request,
        mut artifact: Artifact,
        attachments: &Attachments,
    ) -> Result<Content, String> {
        let groups = path.matches(&request.path).ok_or("the path does not match it")?;
        if request.path.split('/').any(|step| step == "..") {
            return Err("a name with `..` is not put into a URL or an archive's path".to_owned());
        }
        if let Some(template) = texts::served(&artifact) {
            let text = self.0.texts.render(template, request, &groups).await?;
            artifact.source = ArtifactSource::Data(text);
        }
        self.artifact(&artifact, attachments, Some(&groups))
    }

    /// Generated files are there whole before a boot, so that the sizes in the image's header are known.
    fn boot_image(&self, image: &BootImage, attachments: &Attachments) -> Result<Content, String> {
        let kernel = self.artifact(&image.kernel, attachments, None)?;
        let ramdisk = self.joined(&image.ramdisk, attachments, Content::Archives)?;
        let dtb = self.joined(&image.dtb, attachments, Content::Joined)?;
        let sizes = Sizes { kernel: size_of(&kernel)?, ramdisk: size_of(&ramdisk)?, dtb: size_of(&dtb)? };
        let content = |piece| match piece {
            Piece::Bytes(bytes) => Content::Inline(Bytes::from(bytes)),
            Piece::Kernel => kernel.clone(),
            Piece::Ramdisk => ramdisk.clone(),
            Piece::Dtb => dtb.clone(),
        };
        Ok(Content::Joined(image.pieces(sizes)?.into_iter().map(content).collect()))
    }

    fn artifact(
        &self,
        artifact: &Artifact,
        attachments: &Attachments,
        groups: Option<&Groups>,
    ) -> Result<Content, String> {
        let archive = match &artifact.source {
            ArtifactSource::Archive(archive) => Some(archive),
            _ if artifact.format.is_empty() => return self.source(&artifact.source, attachments, groups),
            _ => None,
        };
        let made = |edits: &Vec<(Artifact, Edited)>| {
            edits.iter().find(|(other, _)| other == artifact).map(|(_, edited)| edited.clone())
        };
        let mut edits = self.0.edits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(edited) = made(&edits).filter(|_| groups.is_none()) {
            return Ok(Content::Edited(edited));
        }
        drop(edits);
        let mut steps = Vec::new();
        let source = match archive {
            Some(Archive { extension, compression, add }) => {
                let add = self.additions(add, attachments, groups)?;
                let (kind, compression) = (*extension, *compression);
                steps.push(Step::Archive(Rework { kind, compression, keep: Vec::new(), pick: None, add }));
                None
            }
            None => Some(self.source(&artifact.source, attachments, groups)?),
        };
        for step in &artifact.format {
            steps.push(self.step(step, attachments, groups)?);
        }
        let edited = self.0.from.cache().editor().edit(Recipe { source, steps });
        if groups.is_none() {
            edits = self.0.edits.lock().unwrap_or_else(PoisonError::into_inner);
            edits.push((artifact.clone(), edited.clone()));
        }
        Ok(Content::Edited(edited))
    }

    fn source(
        &self,
        source: &ArtifactSource,
        attachments: &Attachments,
        groups: Option<&Groups>,
    ) -> Result<Content, String> {
        match source {
            ArtifactSource::Data(text) => Ok(Content::Inline(Bytes::from(text.clone()))),
            ArtifactSource::Url(url) => match (groups, self.0.downloads.get(url)) {
                (Some(groups), _) if Groups::are_used_in(url) => {
                    Ok(Content::Url(self.0.from.fetch_and_watch(&groups.map(percent_encoded).expand(url))))
                }
                (_, Some(cached)) => Ok(Content::Url(cached.clone())),
                (Some(_), None) => Ok(Content::Url(self.0.from.fetch_and_watch(url))),
                (None, None) => Err(format!("`{url}` was not fetched")),
            },
            ArtifactSource::Attached(name) => attachments.get(name).map(Attached::content).ok_or_else(|| {
                let known: Vec<_> = attachments.keys().map(String::as_str).collect();
                format!("no file `{name}` was attached; attached: {}", known.join(", "))
            }),
            ArtifactSource::Archive(_) => Err("an archive is made, not fetched".to_owned()),
        }
    }

    fn step(&self, step: &FormatStep, attachments: &Attachments, groups: Option<&Groups>) -> Result<Step, String> {
        let ArchiveFormat { extension, compression, keep, add, match_ } = match step {
            FormatStep::Uboot(format) => return Ok(Step::Uboot(format.clone())),
            FormatStep::Archive(format) => format,
        };
        let keep: Result<Vec<_>, String> = keep
            .iter()
            .map(|Keep { path, rewrite }| Ok((pattern("keep.path", path, groups)?, rewrite.clone())))
            .collect();
        let pick = match_.as_ref().map(|text| pattern("match", text, groups)).transpose()?;
        let add = self.additions(add, attachments, groups)?;
        let (kind, compression) = (*extension, *compression);
        Ok(Step::Archive(Rework { kind, compression, keep: keep?, pick, add }))
    }

    fn additions(
        &self,
        members: &[ArchiveMember],
        attachments: &Attachments,
        groups: Option<&Groups>,
    ) -> Result<Vec<Addition>, String> {
        let addition = |member: &ArchiveMember| {
            let path = groups.map_or_else(|| member.path.clone(), |groups| groups.expand(&member.path));
            let content = self.artifact(&member.artifact, attachments, groups)?;
            Ok(Addition { path, mode: member.mode, content })
        };
        members.iter().map(addition).collect()
    }
}

/// A regular expression of a job; what a group of the path took stands in it for itself.
fn pattern(key: &str, text: &str, groups: Option<&Groups>) -> Result<Pattern, String> {
    let expanded = match groups {
        Some(groups) if Groups::are_used_in(text) => groups.map(escaped).expand(text),
        _ => text.to_owned(),
    };
    Pattern::parse(&expanded).map_err(|why| format!("`{key}` is no regular expression: `{expanded}`: {why}"))
}

fn escaped(text: &str) -> String {
    let letter = |letter: char| match letter {
        letter if letter.is_ascii_alphanumeric() || !letter.is_ascii() || letter == '_' => letter.to_string(),
        letter => format!("\\{letter}"),
    };
    text.chars().map(letter).collect()
}

/// `text` as a part of a URL's path: a DUT chooses it, and must not begin a query or another host with it.
fn percent_encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// The path of an entry of the job's own that is made when it is asked for: its artifact uses the path's groups, or is a template.
fn path_to_ask_by(planned: &Planned) -> Option<PathMatch> {
    let (Name::Matching(text, _), Origin::Job, Source::Artifacts(artifacts)) =
        (&planned.name, planned.origin, &planned.source)
    else {
        return None;
    };
    let is_template = |artifact: &Artifact| texts::served(artifact).is_some();
    let uses = (text.contains('(') && artifacts.iter().any(uses_groups)) || artifacts.iter().any(is_template);
    uses.then(|| PathMatch::parse(text).ok()).flatten()
}

fn uses_groups(artifact: &Artifact) -> bool {
    let of_members = |members: &[ArchiveMember]| {
        members.iter().any(|member| Groups::are_used_in(&member.path) || uses_groups(&member.artifact))
    };
    let of_step = |step: &FormatStep| match step {
        FormatStep::Uboot(_) => false,
        FormatStep::Archive(format) => {
            let patterns = format.keep.iter().map(|keep| &keep.path).chain(&format.match_);
            patterns.into_iter().any(|text| Groups::are_used_in(text)) || of_members(&format.add)
        }
    };
    let of_source = match &artifact.source {
        ArtifactSource::Url(url) => Groups::are_used_in(url),
        ArtifactSource::Archive(archive) => of_members(&archive.add),
        ArtifactSource::Data(_) | ArtifactSource::Attached(_) => false,
    };
    of_source || artifact.format.iter().any(of_step)
}

fn size_of(content: &Content) -> Result<u64, String> {
    match content {
        Content::Inline(bytes) => Ok(bytes.len() as u64),
        Content::Url(cached) => Ok(cached.state().bytes),
        Content::Joined(parts) => parts.iter().map(size_of).sum(),
        // Each begins on a boundary of four bytes.
        Content::Archives(parts) => {
            parts.iter().try_fold(0_u64, |sum, part| Ok(sum.next_multiple_of(4) + size_of(part)?))
        }
        Content::Edited(edited) => edited.size().ok_or_else(|| format!("{edited} is not made yet")),
        Content::File(path) => std::fs::metadata(path)
            .map(|metadata| metadata.len())
            .map_err(|error| format!("cannot tell the size of {}: {error}", path.display())),
        other => Err(format!("a boot image is made of files and downloads, not of {other:?}")),
    }
}

/// What is fetched for an entry before it is asked for.
fn urls(planned: &Planned) -> Vec<&str> {
    let mut found = Vec::new();
    if path_to_ask_by(planned).is_some() {
        return found;
    }
    match &planned.source {
        Source::Artifacts(artifacts) | Source::Archives(artifacts) => {
            artifacts.iter().for_each(|artifact| collect(artifact, &mut found));
        }
        Source::Android(image) => {
            let all = std::iter::once(&image.kernel).chain(&image.ramdisk).chain(&image.dtb);
            all.for_each(|artifact| collect(artifact, &mut found));
        }
        Source::Text(_) | Source::Wrapped { .. } | Source::Firmware(_) => {}
    }
    found
}

/// What is fetched for one artifact.
pub(super) fn urls_of(artifact: &Artifact) -> Vec<&str> {
    let mut found = Vec::new();
    collect(artifact, &mut found);
    found
}

fn collect<'a>(artifact: &'a Artifact, urls: &mut Vec<&'a str>) {
    match &artifact.source {
        ArtifactSource::Url(url) => urls.push(url),
        ArtifactSource::Archive(archive) => archive.add.iter().for_each(|member| collect(&member.artifact, urls)),
        ArtifactSource::Data(_) | ArtifactSource::Attached(_) => {}
    }
    for step in &artifact.format {
        if let FormatStep::Archive(format) = step {
            format.add.iter().for_each(|member| collect(&member.artifact, urls));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(path: &str, artifact: &str) -> Planned {
        let artifact: Artifact = artifact_of(artifact);
        let name = Name::Matching(path.to_owned(), Arc::new(|_| true));
        let (protocol, exposure) = (gateway::namespace::Protocol::Http, gateway::namespace::Exposure::default());
        Planned { protocol, name, source: Source::Artifacts(vec![artifact]), exposure, origin: Origin::Job }
    }

    fn artifact_of(text: &str) -> Artifact {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn an_entry_waits_for_its_name_only_when_its_artifact_uses_a_group_of_its_path() {
        let waits = |path: &str, artifact: &str| path_to_ask_by(&planned(path, artifact)).is_some();
        assert!(waits("/m/(.*)", r"url: https://h/\1"));
        assert!(waits("/m/(.*)", r"{url: https://h/a.tar, format: [{archive: {match: 'lib/\1'}}]}"));
        assert!(!waits("/m/(.*)", "url: https://h/one"));
        assert!(!waits("/m/(.*)", r"{url: https://h/a.tar, format: [{archive: {match: 'lib/.*\.ko'}}]}"));
        assert!(waits("/m/one", "data: '{{ machine_id }}'") && !waits("/m/one", "data: '{ machine_id }'"));
        assert!(!waits("/m/one", r"{url: https://h/a.tar, format: [{archive: {keep: [{path: '(a)\1'}]}}]}"));
    }

    #[test]
    fn what_is_fetched_beforehand_is_also_what_archives_are_made_of() {
        let artifact = "{url: https://h/a, format: [{archive: {extension: cpio, add: [{path: b, artifact: {url: https://h/b}}]}}]}";
        assert_eq!(urls(&planned("/a", artifact)), ["https://h/a", "https://h/b"]);
        assert_eq!(urls(&planned("/m/(.*)", r"url: https://h/\1")), Vec::<&str>::new());
    }

    #[test]
    fn what_a_dut_asks_for_cannot_change_a_url_s_host_or_query_nor_a_pattern() {
        assert_eq!(percent_encoded("a/b?c=d#e@f é"), "a/b%3Fc%3Dd%23e%40f%20%C3%A9");
        assert_eq!(escaped("a.b*/(c)"), r"a\.b\*\/\(c\)");
        assert!(Pattern::parse(&escaped("a.b*/(c)é")).unwrap().is_full_match("a.b*/(c)é".as_bytes()).unwrap());
    }
}
