//! Small farms for the tests of this room.

use super::allocator::{Decision, outlooks, plan};
use super::next::{Next, next_of_lease, next_of_resource};
use super::rows::*;
use super::steps::{Context, LeaseEvent, ResourceEvent, Rules, admit, make, step_lease, step_resource};
use super::tables::Tables;

/// A machine of the inventory with a console, an outlet and a boot namespace; and its parts.
pub fn static_dut(name: &str, tags: &[&str]) -> Vec<Blueprint> {
    let named = |kind, part: &str| Claim { kind, on: ClaimOn::Named(format!("{name}-{part}")) };
    let namespace = Claim { kind: Kind::BootNamespace, on: ClaimOn::Made { identity: format!("bootns:{name}") } };
    vec![
        Blueprint {
            gang: vec![namespace, named(Kind::Console, "tty"), named(Kind::Power, "outlet")],
            ..blueprint(Kind::Dut, name, tags)
        },
        blueprint(Kind::Console, &format!("{name}-tty"), &[]),
        blueprint(Kind::Power, &format!("{name}-outlet"), &[]),
    ]
}

/// One thing of the inventory.
pub fn blueprint(kind: Kind, name: &str, tags: &[&str]) -> Blueprint {
    Blueprint {
        name: name.into(),
        full_name: format!("farm-{name}"),
        kind,
        tags: tags.iter().map(|tag| tag.to_string()).collect(),
        limit: 1,
        pool: None,
        preallocated: 1,
        seats: 1,
        gang: Vec::new(),
        access: Access::Everyone,
        policy: PlacementPolicy::Spread,
        idle_ms_min: 0,
        idle_ms_max: None,
        activate_ms: 60_000,
        mean_hold_ms: None,
        service: Service::Open,
        patience: Patience::default(),
        trial: None,
        before: None,
    }
}

/// A job's request for any DUT with these tags.
pub fn request(id: &str, tags: &[&str]) -> LeaseRequest {
    LeaseRequest {
        id: id.into(),
        want: Want {
            kind: Kind::Dut,
            name: None,
            tags: tags.iter().map(|tag| tag.to_string()).collect(),
            mode: Mode::Hold,
            purpose: Purpose::Work,
        },
        also: Vec::new(),
        gang: None,
        prefers: Vec::new(),
        avoid: Vec::new(),
        sticky: None,
        priority: 0,
        owner: Owner::Job(id.into()),
        authorizer: "somebody".into(),
        timeouts: Timeouts::default(),
    }
}

/// A farm whose effects all work at once.
pub struct SmallFarm {
    pub tables: Tables,
    pub now: Moment,
    pub log: Vec<Transition>,
}

impl SmallFarm {
    pub fn of(blueprints: impl IntoIterator<Item = Blueprint>) -> SmallFarm {
        let mut tables = Tables::default();
        tables.blueprints = blueprints.into_iter().map(|blueprint| (blueprint.name.clone(), blueprint)).collect();
        let mut farm = SmallFarm { tables, now: Moment(1_000), log: Vec::new() };
        farm.settle();
        farm
    }

    pub fn context(&self) -> Context<'_> {
        Context { tables: &self.tables, now: self.now, rules: Rules::default() }
    }

    pub fn commit(&mut self, mut transition: Transition) {
        self.tables.number(&mut transition);
        self.tables.apply(&transition).expect("it goes on from the rows");
        self.log.push(transition);
    }

    pub fn request(&mut self, request: LeaseRequest) {
        let transition = admit(request, &self.context());
        self.commit(transition);
    }

    pub fn ask(&mut self, target: Object, verb: Verb) {
        self.commit(Transition::ask(self.now, target, verb, "somebody"));
    }

    pub fn release(&mut self, lease: &str) {
        let cause = Cause::Released { by: "somebody".into() };
        self.ask(Object::Lease(lease.into()), Verb::Release { cause });
        self.settle();
    }

    pub fn state(&self, lease: &str) -> LeaseState {
        self.tables.lease(&lease.into()).expect("it was requested").state
    }

    /// The name of what a lease holds.
    pub fn holds(&self, lease: &str) -> Option<String> {
        let lease = self.tables.lease(&lease.into()).expect("it was requested");
        let resource = lease.resource.as_ref().filter(|_| lease.is_held())?;
        Some(self.tables.resource(resource).expect("it is held").name.clone())
    }

    /// The reasons a waiting lease is told, and its place.
    pub fn outlook(&self, lease: &str) -> (usize, Vec<String>) {
        let outlook = &outlooks(&self.tables, self.now)[&lease.into()];
        (outlook.place, outlook.reasons.iter().map(ToString::to_string).collect())
    }

    /// Goes on until nothing moves by itself.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step_rows() && !self.step_allocator() {
                return;
            }
        }
        panic!("the farm does not come to rest");
    }

    fn step_rows(&mut self) -> bool {
        let leases: Vec<Lease> = self.tables.leases().cloned().collect();
        for lease in leases {
            let event = match next_of_lease(&lease, &self.context()) {
                Next::Lease(event) => event,
                Next::Effect(Operation::Activate) => LeaseEvent::Activated,
                Next::Effect(Operation::Revoke) => LeaseEvent::HandlesClosed,
                Next::Effect(Operation::TearDown) => LeaseEvent::TornDown,
                Next::Resource(_) | Next::Wait(_) | Next::Over => continue,
            };
            let transition = step_lease(&lease, &self.context(), event).expect("the table has the row");
            self.commit(transition);
            return true;
        }
        let resources: Vec<Resource> = self.tables.resources().cloned().collect();
        for resource in resources {
            let event = match next_of_resource(&resource, &self.context()) {
                Next::Resource(event) => event,
                Next::Effect(Operation::Activate) => ResourceEvent::Activated { facts: Vec::new() },
                Next::Effect(Operation::TearDown | Operation::Revoke) => ResourceEvent::TornDown,
                Next::Lease(_) | Next::Wait(_) | Next::Over => continue,
            };
            let transition = step_resource(&resource, &self.context(), event).expect("the table has the row");
            self.commit(transition);
            return true;
        }
        false
    }

    pub fn step_allocator(&mut self) -> bool {
        let decisions = plan(&self.tables, self.now).decisions;
        for decision in &decisions {
            self.decide(decision);
        }
        !decisions.is_empty()
    }

    fn decide(&mut self, decision: &Decision) {
        match decision {
            Decision::Grant(grants) => {
                for (lease, grant) in grants {
                    let lease = self.tables.lease(lease).expect("it waits").clone();
                    let event = LeaseEvent::Placed(Box::new(grant.clone()));
                    let transition = step_lease(&lease, &self.context(), event).expect("the table has the row");
                    self.commit(transition);
                }
            }
            Decision::Build(resource) => {
                let transition = make(*resource.clone(), &self.context());
                self.commit(transition);
            }
            Decision::Reclaim { resource, .. } => self.ask(Object::Resource(resource.clone()), Verb::Reclaim),
            Decision::Drain(resource) => self.ask(Object::Resource(resource.clone()), Verb::Drain),
            Decision::Never { lease, why } => {
                let lease = self.tables.lease(lease).expect("it waits").clone();
                let event = LeaseEvent::NeverFeasible { why: why.clone() };
                let transition = step_lease(&lease, &self.context(), event).expect("the table has the row");
                self.commit(transition);
            }
        }
    }
}
