//! The block devices of a job: made before its first boot, published by NBD, back to their beginning when the job says so.
//!
//! ```text
//!  job ─► make: each export once, over its image or zeros ─► publish(deployment) ─► boot: `reset_on: boot` begins anew
//!          └─ kept or shared: taken from the shelf                     └─ gone with the job's boot namespace, or back on the shelf
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use gateway::Gateway;
use gateway::content::Content;
use gateway::content::disk::{Base, Config, Disk, Mode};
use gateway::door::Transport;
use gateway::namespace::{Exposure, Name, Origin, Protocol, Publication};
use gateway::net::Net;
use job_schema::job::{Job, Lifetime, NbdContent, NbdExport, ResetOn};

use super::downloads::Downloads;
use super::prepare::describe_exposure;
use super::shelf::{self, Held, Shelf};
use crate::job_log::JobLog;
use crate::runner::SetupError;
use crate::session::Which;
use crate::verdict::Cause;

/// The disks of one job. An export that the next deployment has, too, is the same disk.
#[derive(Default)]
pub(super) struct Disks {
    made: Vec<Made>,
    start: Vec<NbdExport>,
    continue_: Vec<NbdExport>,
}

struct Made {
    export: NbdExport,
    disk: Disk,
    /// Of a disk that is kept or shared.
    _held: Option<Held>,
}

/// Whose disks they are.
pub(super) struct User<'a> {
    /// The job, or the lease.
    pub job: &'a str,
    /// The DUT's id.
    pub dut: &'a str,
    /// The project, user or token in whose name it runs.
    pub subject: &'a str,
    /// Its log; what a DUT writes is kept beside it.
    pub log: &'a JobLog,
}

impl Disks {
    /// Makes every disk of the job, or takes it from the shelf. Images have begun to arrive when this returns; those of disks that are
    /// kept are there.
    pub(super) async fn make(
        job: &Job,
        shelf: &Shelf,
        user: &User<'_>,
        downloads: &Downloads,
    ) -> Result<Disks, SetupError> {
        let (start, continue_) = (job.start.storage.nbd.clone(), job.continue_.storage.nbd.clone());
        let mut made: Vec<Made> = Vec::new();
        for export in start.iter().chain(&continue_) {
            if !made.iter().any(|other| other.export.is_same_disk(export)) {
                made.push(make_one(export, shelf, user, downloads).await.map_err(|reason| SetupError {
                    cause: Cause::Artifact,
                    reason: format!("cannot make the disk `{}`: {reason}", export.name),
                })?);
            }
        }
        Ok(Disks { made, start, continue_ })
    }

    /// Attaches each disk once as the DUT will, before anybody depends on it: in a namespace that only lives for this.
    pub(super) async fn prove(&self, gateway: &Gateway, net: &Net, dut: IpAddr) -> Result<(), SetupError> {
        if self.made.is_empty() {
            return Ok(());
        }
        let failed = |reason: String| SetupError { cause: Cause::Farm, reason };
        let address = gateway.addresses().nbd.ok_or_else(|| failed("the gateway serves no NBD".into()))?;
        for which in [Which::Start, Which::Continue] {
            let publication = gateway.namespaces().publish(dut, Arc::new(|_| ()));
            let publication = publication.map_err(|taken| failed(taken.to_string()))?;
            self.publish(which, &publication, Instant::now());
            for Made { export, disk, .. } in self.made.iter().filter(|made| self.has(which, &made.export)) {
                let name = export.name.to_string();
                let wants_tls = self.of(which).iter().any(|other| other.is_same_disk(export) && other.tls);
                let tls = wants_tls.then(|| gateway.tls());
                let proof = gateway::nbd::proof::prove(net, address, tls, publication.key(), &name, disk).await;
                proof.map_err(|error| failed(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Puts the disks of a deployment into the job's namespace.
    pub(super) fn publish(&self, which: Which, publication: &Publication<Content>, since: Instant) {
        for export in self.of(which) {
            if let Some(Made { disk, .. }) = self.made.iter().find(|made| made.export.is_same_disk(export)) {
                let name = Name::Exact(export.name.to_string());
                let content = Content::Disk(disk.clone());
                publication.put(Protocol::Nbd, name, content, exposure_of(export), Origin::Job, since);
            }
        }
    }

    /// A boot begins, with the DUT off: what is kept no longer than a boot is gone.
    pub(super) fn begin_boot(&self, which: Which) -> Result<(), String> {
        let new_each_time = self.made.iter().filter(|made| made.export.reset_on == ResetOn::Boot);
        for Made { export, disk, .. } in new_each_time.filter(|made| self.has(which, &made.export)) {
            disk.renew().map_err(|error| format!("cannot reset the disk `{}`: {error}", export.name))?;
        }
        Ok(())
    }

    /// Whether something of the job's is limited in how often or how long it may be attached.
    pub(super) fn are_limited(&self) -> bool {
        self.start.iter().chain(&self.continue_).any(|export| exposure_of(export).is_limited())
    }

    fn has(&self, which: Which, export: &NbdExport) -> bool {
        self.of(which).iter().any(|other| other.is_same_disk(export))
    }

    fn of(&self, which: Which) -> &[NbdExport] {
        match which {
            Which::Start => &self.start,
            Which::Continue => &self.continue_,
        }
    }
}

fn exposure_of(export: &NbdExport) -> Exposure {
    let Lifetime { access_count, first_read, duration } = export.lifetime;
    let transport = if export.tls { Transport::Tls } else { Transport::Clear };
    Exposure { access_count, first_read, duration, port: None, transport }
}

async fn make_one(export: &NbdExport, shelf: &Shelf, user: &User<'_>, downloads: &Downloads) -> Result<Made, String> {
    let (base, source) = match &export.content {
        NbdContent::Empty { size_bytes } => {
            let source = format!("{size_bytes} bytes");
            (Base::Zeros { size_bytes: *size_bytes }, [source.clone(), source])
        }
        NbdContent::Url(url) => {
            let image = downloads.fetch(url);
            image.ready().await.map_err(|error| {
                downloads.note(&error);
                error.to_string()
            })?;
            let source = [url.clone(), image.url().to_owned()];
            (Base::Image(Content::Url(image)), source)
        }
        NbdContent::Filesystem(_) => return Err("file systems are not made by this version".into()),
    };
    if shelf::is_for(export) {
        let source = [source[0].as_str(), source[1].as_str()];
        let (disk, held) = shelf.take(shelf::Ask { export, base, source, user }).await?;
        return Ok(Made { export: export.clone(), disk, _held: Some(held) });
    }
    let mode = if export.readonly { Mode::ReadOnly } else { Mode::CopyOnWrite };
    let directory = user.log.folder().to_owned();
    let config = Config { base, mode, directory, attachments_max: export.max_connections };
    let disk = Disk::make(config).await.map_err(|error| error.to_string())?;
    Ok(Made { export: export.clone(), disk, _held: None })
}

/// A row of what is published.
pub(super) fn described(export: &NbdExport) -> [String; 4] {
    let source = match &export.content {
        NbdContent::Empty { size_bytes } => format!("an empty disk of {size_bytes} bytes"),
        NbdContent::Url(url) => url.clone(),
        NbdContent::Filesystem(_) => "a file system".to_owned(),
    };
    [Protocol::Nbd.to_string(), export.name.to_string(), source, describe_exposure(&exposure_of(export))]
}

/// What of a job's disks this version does not serve.
pub(super) fn unserved(exports: &[NbdExport]) -> Vec<&'static str> {
    let is_filesystem = |export: &NbdExport| matches!(export.content, NbdContent::Filesystem(_));
    // Whose boot would that be?
    let is_torn = |export: &NbdExport| export.shared && export.reset_on == ResetOn::Boot;
    let table = [
        ("an NBD export's `filesystem`", exports.iter().any(is_filesystem)),
        ("an NBD export that is `shared: true` and has `reset_on: boot`", exports.iter().any(is_torn)),
    ];
    table.into_iter().filter(|(_, used)| *used).map(|(what, _)| what).collect()
}
