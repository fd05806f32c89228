//! Giving a leased DUT's loader its boot image: the farm opens the artifact in the DUT's name, so that it is counted and told as any other.
//!
//! ```text
//!  Awaited ─► the loader is there ─► Found ─► who it is, the image ─► Done: it boots      (blueprint/fastboot)
//!     └ never there                     └ refuses, stalls, babbles, goes away ─► Failed
//! ```
//! Whoever cuts the DUT's power ends this at once: it is a task of the runner.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::FutureExt;
use gateway::content::Content;
use gateway::namespace::{Access, Caller, Namespaces, Outcome, Protocol};
use tokio::sync::mpsc;

use super::carry::Run;
use super::machines::Dut;
use super::{Farm, JobRecord};
use crate::blueprint::fastboot::dialogue::Order;
use crate::blueprint::fastboot::{self, Fault, Heard, Loader, Patience, tcp, usb};
use crate::boot::fastboot::{HandOver, Reach};
use crate::job_log::Severity;
use crate::lease::Pass;
use crate::runner;
use crate::session::{self, Event};
use crate::verdict::Cause;

impl Run {
    /// For the runner: what a deployment has for the DUT's loader, given to it in this boot.
    pub(super) fn hand_over(&self) -> runner::HandOver {
        let giver = Arc::new(Giver {
            farm: Arc::clone(&self.farm),
            dut: Arc::clone(&self.dut),
            pass: self.pass.clone(),
            record: Arc::clone(&self.record),
        });
        Arc::new(move |which, boot| {
            let order = giver.dut.boot.hand_over(which)?;
            let giver = Arc::clone(&giver);
            Some(async move { Event::HandOver { boot, news: giver.give(&order, boot).await } }.boxed())
        })
    }
}

/// Who gives what to a DUT's loader.
struct Giver {
    farm: Arc<Farm>,
    dut: Arc<Dut>,
    pass: Pass,
    record: Arc<JobRecord>,
}

impl Giver {
    async fn give(&self, order: &HandOver, boot: u32) -> session::HandOver {
        let loader = self.loader(&order.reach);
        match self.try_to_give(order, &loader, boot).await {
            Ok(text) => session::HandOver::Done { text },
            Err(fault) => {
                let (cause, why) = match fault {
                    Failure::OfLoader(Fault::Image(error)) => (Cause::Artifact, Fault::Image(error).to_string()),
                    Failure::OfLoader(fault @ Fault::Host(_)) => (Cause::Farm, format!("{loader}: {fault}")),
                    Failure::OfLoader(fault) => (Cause::Dut, format!("{loader}: {fault}")),
                    Failure::OfFarm(why) => (Cause::Farm, why),
                };
                session::HandOver::Failed { cause, reason: why }
            }
        }
    }

    async fn try_to_give(&self, order: &HandOver, loader: &Loader, boot: u32) -> Result<String, Failure> {
        let patience = Patience::default();
        self.pass.check().map_err(|revoked| Failure::OfFarm(revoked.to_string()))?;
        self.tell(boot, session::HandOver::Awaited { loader: loader.to_string() }).await;
        let mut link = loader.reach(&patience).await?;
        self.tell(boot, session::HandOver::Found).await;
        let content = self.name(order).look().map_err(Failure::OfFarm)?;
        let image = content.open().await.map_err(Fault::Image)?;
        let image_bytes = image.complete_size().await.map_err(Fault::Image)?;
        let mut course = Course { record: &self.record, name: self.name(order), access: None };
        let order = Order { variables: order.variables.clone(), image_bytes };
        let given = fastboot::boot(&mut *link, order, &image, &patience, &mut |heard| course.hear(heard)).await;
        if let Some(access) = course.access {
            access.end(match &given {
                Ok(_) => Outcome::Complete,
                Err(fault) => Outcome::Failed(fault.to_string()),
            });
        }
        let seconds = given?.as_secs_f64();
        Ok(format!("{loader} took {image_bytes} bytes in {seconds:.2} s, and boots them"))
    }

    fn name<'a>(&'a self, order: &'a HandOver) -> ImageName<'a> {
        let (namespaces, caller) = (self.farm.gateway.namespaces(), Caller::Address(self.dut.address()));
        ImageName { namespaces, caller, name: &order.name }
    }

    async fn tell(&self, boot: u32, news: session::HandOver) {
        // The session is gone only when this task is about to be, too.
        let _ = self.events().send(Event::HandOver { boot, news }).await;
    }

    fn events(&self) -> &mpsc::Sender<Event> {
        &self.record.events
    }

    fn loader(&self, reach: &Reach) -> Loader {
        match reach {
            Reach::Tcp { port } => Loader::Tcp(tcp::Address {
                net: self.farm.machines.net(),
                socket: SocketAddr::new(self.dut.address(), *port),
            }),
            Reach::Usb { serial: None, path: None } => {
                Loader::Usb(usb::Device { serial: Some(self.dut.config.id.clone()), path: None })
            }
            Reach::Usb { serial, path } => Loader::Usb(usb::Device { serial: serial.clone(), path: path.clone() }),
        }
    }
}

/// Why nothing was given.
enum Failure {
    OfLoader(Fault),
    OfFarm(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::OfLoader(fault)
    }
}

/// The boot image in the DUT's namespace.
struct ImageName<'a> {
    namespaces: &'a Namespaces<Content>,
    caller: Caller<'a>,
    name: &'a str,
}

impl ImageName<'_> {
    fn look(&self) -> Result<Content, String> {
        let look = self.namespaces.look(self.caller, Protocol::Fastboot, self.name, Instant::now());
        look.map_err(|refusal| format!("fastboot {}: {refusal}", self.name))
    }

    /// `None`: it is withdrawn, and its DUT about to be switched off.
    fn open(&self) -> Option<Access> {
        let opened = self.namespaces.open(self.caller, Protocol::Fastboot, self.name, Instant::now());
        opened.map(|opened| opened.access).ok()
    }
}

/// What is heard while the loader is given its image.
struct Course<'a> {
    record: &'a JobRecord,
    name: ImageName<'a>,
    access: Option<Access>,
}

impl Course<'_> {
    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Line(line) => self.record.note(Severity::Info, format!("The loader says: {line}")),
            Heard::Ready => self.access = self.name.open(),
            Heard::Took(bytes) => self.access.iter_mut().for_each(|access| access.took(bytes, Instant::now())),
        }
    }
}
