//! What registers a machine that nobody knows: the first boot of a job description, served to whoever has no name.
//!
//! ```text
//!  register.yml, or the farm file's `discovery.job` ─► rendered and planned once, for no machine in particular ─► fetched
//!      ├─► every stranger's namespace            (strangers.rs)
//!      └─► DHCP: what machines without reservation boot
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use gateway::content::reach::Reach;
use gateway::dhcp::BootOffer;

use super::lock;
use super::strangers::{Boot, Entry};
use crate::config::{BeforeService, DutConfig, MachineConfig, SimulatedConfig, Unknown};
use crate::farm::egress::AuditTrail;
use crate::farm::{Farm, Submission};
use crate::job_log::JobLog;
use crate::lease::rows::Access;
use crate::session::Which;
use crate::virtual_dut::images::{self, Registration};

/// What registers a machine where the farm file names no job of its own.
const REGISTER: &str = include_str!("../../../../fixtures/jobs/good/register.yml");
/// Between two attempts to make the boot ready, while the farm's own images are not served yet or a URL does not answer.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

impl Farm {
    /// From now on strangers may boot what registers them.
    pub(super) async fn open_doors(&self) -> Result<(), String> {
        let (boot, dhcp) = self.registration_boot().await?;
        self.discovery.strangers.offer(Some(Arc::new(boot)));
        self.gateway.dhcp().set_strangers_boot(Some(dhcp));
        Ok(())
    }

    /// From now on they may not, unless the farm file says always.
    pub(super) fn close_doors(&self) {
        if self.config().discovery.unknown == Unknown::WhenDiscovered {
            self.gateway.dhcp().set_strangers_boot(None);
            self.discovery.strangers.offer(None);
        }
    }

    /// What the farm file says about strangers now holds: at the start, and after each change of the file.
    pub(in crate::farm) fn keep_doors(self: &Arc<Self>) {
        if self.config().discovery.unknown == Unknown::WhenDiscovered {
            *lock(&self.discovery.listening) = None;
            if self.discovery.running().is_none() {
                self.close_doors();
            }
            return;
        }
        lock(&self.discovery.listening).get_or_insert_with(|| self.consoles().discover());
        let farm = Arc::clone(self);
        self.carriers().spawn(async move {
            if let Some(lacks) = farm.linux_of_strangers_lacks().await {
                tracing::warn!("{lacks}");
            }
            let mut stopping = farm.stopping.subscribe();
            let mut told = None;
            while farm.config().discovery.unknown == Unknown::Always {
                match farm.open_doors().await {
                    Ok(()) => return,
                    Err(why) if told.as_ref() != Some(&why) => {
                        tracing::warn!(why, "machines that the farm does not know cannot register yet");
                        told = Some(why);
                    }
                    Err(_) => {}
                }
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
        });
    }

    /// What a real machine lacks in what it boots to register, and how to get it.
    pub(super) async fn linux_of_strangers_lacks(&self) -> Option<String> {
        let config = self.config();
        if config.discovery.job.is_some() {
            return None;
        }
        let kernel = config.discovery.kernel.clone();
        let found = tokio::task::spawn_blocking(move || images::registration(kernel.as_ref())).await;
        let lacks = match found.ok()? {
            Registration::Hardware(_) => return None,
            Registration::Virtual => "the Linux that machines boot to register has no drivers for real network cards",
            Registration::None => "there is no Linux that machines could boot to register",
        };
        Some(format!(
            "{lacks}: `wharf virtual install --registration` on the server's host gets one with drivers for them, or name one as `discovery.kernel` in the farm file"
        ))
    }

    /// The kernel that the farm file has for machines that register.
    pub fn kernel_of_strangers(&self) -> Option<(PathBuf, PathBuf)> {
        self.config().discovery.kernel.clone()
    }

    async fn registration_boot(&self) -> Result<(Boot, BootOffer), String> {
        let (source_name, text) =
            self.config().discovery.job.clone().unwrap_or_else(|| ("register.yml".to_owned(), REGISTER.to_owned()));
        let submission = Submission {
            source_name,
            text,
            submitter: "discovery".into(),
            reach: Reach::Everywhere,
            ..Submission::default()
        };
        let prepared = self.planner.prepare(&submission, &nobody(), None).await.map_err(|error| error.to_string())?;
        if !prepared.job.start.storage.nbd.is_empty() {
            return Err(format!("{}: a machine without a name gets no disks", submission.source_name));
        }
        let folder = self.config().state.join("registration");
        let cannot = |error: std::io::Error| format!("cannot keep its log in {}: {error}", folder.display());
        let log = JobLog::create(&folder).map_err(cannot)?;
        let trail = Arc::new(AuditTrail::new(&self.audit, submission.submitter.clone(), ""));
        let contents = self.fetch(&log, &prepared, &trail).await.map_err(|error| error.reason)?;
        contents.begin(Which::Start, Some(1));
        let mut entries = Vec::new();
        for planned in &prepared.start.artifacts {
            let content = contents.of(planned, &prepared.attachments)?;
            let (protocol, name) = (planned.protocol, planned.name.clone());
            entries.push(Entry { protocol, name, content, exposure: planned.exposure, origin: planned.origin });
        }
        Ok((Boot { entries }, prepared.start.dhcp))
    }
}

/// What the job is rendered for, before it is known who boots it: an address of documentation's (RFC 5737), and no MAC.
fn nobody() -> DutConfig {
    DutConfig {
        id: "unknown".into(),
        full_name: "unknown".into(),
        base_name: "unknown".into(),
        tags: Vec::new(),
        mac: "00:00:00:00:00:00".into(),
        address: Ipv4Addr::new(192, 0, 2, 1),
        comment: None,
        access: Access::Everyone,
        needs: Vec::new(),
        machine: MachineConfig::Simulated(SimulatedConfig::default()),
        off_time: None,
        boot: None,
        before_service: BeforeService::Nothing,
    }
}
