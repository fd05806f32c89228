//! What forges need of a farm: what the farm file says of them, which DUTs there are, and whether a job would find one free.

use std::path::PathBuf;

use super::wants::{self, Wants};
use super::{Asks, Farm, Submission, TargetOverride};
use crate::config::forgejo::ForgejoConfig;
use crate::config::gitlab::GitlabConfig;

/// What forges go by.
#[derive(Clone, Debug, PartialEq)]
pub struct Forges {
    /// GitLab instances.
    pub gitlab: Vec<GitlabConfig>,
    /// Forgejo and Gitea instances.
    pub forgejo: Vec<ForgejoConfig>,
    /// The DUTs that there are.
    pub duts: Vec<ForgeDut>,
    /// The farm's folder.
    pub state: PathBuf,
}

/// A DUT as forges know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForgeDut {
    /// What jobs name it by.
    pub id: String,
    /// What it is called in GitLab's list.
    pub full_name: String,
    /// Its tags, the farm's included.
    pub tags: Vec<String>,
}

impl ForgeDut {
    /// Whether it has all of these tags and, where one is named, is the one with this id or full name.
    pub fn is_meant(&self, tags: &[String], name: Option<&str>) -> bool {
        name.is_none_or(|name| name == self.id || name == self.full_name)
            && tags.iter().all(|tag| self.tags.contains(tag))
    }

    /// Whichever of the DUTs a job gets, it has these.
    pub fn common_tags(duts: &[&ForgeDut]) -> Vec<String> {
        let first = duts.first().map(|dut| dut.tags.clone()).unwrap_or_default();
        first.into_iter().filter(|tag| duts.iter().all(|dut| dut.tags.contains(tag))).collect()
    }
}

impl Farm {
    /// What forges go by now.
    pub fn forges(&self) -> Forges {
        let config = self.config();
        let of = |dut: &crate::config::DutConfig| ForgeDut {
            id: dut.id.clone(),
            full_name: dut.full_name.clone(),
            tags: wants::tags_of(&config, dut),
        };
        Forges {
            gitlab: config.gitlab.clone(),
            forgejo: config.forgejo.clone(),
            duts: config.duts.iter().map(of).collect(),
            state: config.state.clone(),
        }
    }

    /// Where images of containers come from, if the farm file has a `registry`.
    pub fn images(&self) -> Option<&gateway::registry::Door> {
        self.gateway.registry()
    }

    /// Whether a job for this target would have its DUT at once.
    pub async fn has_room(&self, target: &TargetOverride, subject: &str) -> bool {
        let wants = Wants {
            asks: Asks::Dut,
            id: target.id.clone(),
            tags: target.tags.clone().unwrap_or_default(),
            ..Wants::default()
        };
        let submission = Submission { subject: subject.to_owned(), ..Submission::default() };
        self.keeper.free_now(wants.request(&submission, "", None)).await.is_ok()
    }

    /// Resolves when the farm begins to stop.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.subscribe();
        async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        }
    }
}
