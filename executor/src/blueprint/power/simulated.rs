//! The outlets of simulated DUTs: one PDU for a farm's, an outlet each, named as their DUT.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Outlet, Pdu, PowerError, PowerState};
use crate::virtual_dut::simulated::Machine;

/// Switches machines of this process.
pub struct SimulatedPdu {
    machines: BTreeMap<String, Arc<Machine>>,
}

impl SimulatedPdu {
    /// A PDU with these outlets.
    pub fn new(machines: impl IntoIterator<Item = (Outlet, Arc<Machine>)>) -> Self {
        SimulatedPdu { machines: machines.into_iter().map(|(Outlet(name), machine)| (name, machine)).collect() }
    }

    fn machine(&self, outlet: &Outlet) -> Result<&Arc<Machine>, PowerError> {
        self.machines.get(&outlet.0).ok_or_else(|| {
            let known: Vec<&str> = self.machines.keys().map(String::as_str).collect();
            error(outlet, format!("no such outlet; outlets: {}", known.join(", ")))
        })
    }
}

impl Pdu for SimulatedPdu {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        Box::pin(async move {
            let switched = self.machine(outlet)?.switch(state).await;
            switched.map_err(|cause| error(outlet, format!("cannot switch the simulated DUT {state}: {cause}")))
        })
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        Box::pin(async move { Ok(self.machine(outlet)?.read().await) })
    }
}

fn error(outlet: &Outlet, reason: String) -> PowerError {
    PowerError { outlet: outlet.0.clone(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Fault, Misbehaviour, SimulatedConfig};
    use crate::virtual_dut::simulated::Wire;
    use std::time::Duration;
    use tokio::time::{Instant, timeout};

    fn pdu() -> SimulatedPdu {
        pdu_with(&[])
    }

    fn pdu_with(faults: &[Fault]) -> SimulatedPdu {
        let machine = |number: u8| {
            let wire =
                Wire::Loopback { address: [127, 77, 1, number].into(), dhcp: ([127, 0, 0, 1], 9).into(), tftp_port: 9 };
            let config = SimulatedConfig { misbehave: faults.to_vec(), ..SimulatedConfig::default() };
            Machine::new(config, &format!("52:54:00:00:01:0{number}"), wire).unwrap()
        };
        SimulatedPdu::new([(Outlet("left".into()), machine(1)), (Outlet("right".into()), machine(2))])
    }

    #[tokio::test]
    async fn an_outlet_reads_back_what_it_was_set_to_and_repeating_is_harmless() {
        let (pdu, left, right) = (pdu(), Outlet("left".into()), Outlet("right".into()));
        assert_eq!(pdu.state(&left).await.unwrap(), PowerState::Off);
        for state in [PowerState::On, PowerState::On, PowerState::Off, PowerState::Off, PowerState::On] {
            pdu.set(&left, state).await.unwrap();
            assert_eq!(pdu.state(&left).await.unwrap(), state);
            assert_eq!(pdu.state(&right).await.unwrap(), PowerState::Off);
        }
    }

    #[tokio::test]
    async fn an_unknown_outlet_lists_the_known_ones() {
        let error = pdu().set(&Outlet("7".into()), PowerState::On).await.unwrap_err();
        assert_eq!(error.to_string(), "outlet `7`: no such outlet; outlets: left, right");
    }

    #[tokio::test]
    async fn an_outlet_that_lies_says_off_and_reads_back_on_until_it_obeys_again() {
        let lasts = Duration::from_millis(800);
        let pdu = pdu_with(&[Fault { what: Misbehaviour::OutletLies, boot: None, lasts: Some(lasts) }]);
        let outlet = Outlet("left".into());
        pdu.set(&outlet, PowerState::Off).await.unwrap();
        assert_eq!(pdu.state(&outlet).await.unwrap(), PowerState::Off, "what is off already is no lie");
        for _ in 0..2 {
            pdu.set(&outlet, PowerState::On).await.unwrap();
            let first_lie = Instant::now();
            let mut lies = 0;
            while pdu.state(&outlet).await.unwrap() == PowerState::On {
                pdu.set(&outlet, PowerState::Off).await.unwrap();
                lies += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(lies > 1 && first_lie.elapsed() >= lasts, "{lies} lies in {:?}", first_lie.elapsed());
        }
    }

    #[tokio::test]
    async fn a_slow_outlet_answers_late_and_does_what_it_was_told_when_nobody_waits_any_more() {
        let late = Duration::from_millis(400);
        let pdu = pdu_with(&[Fault { what: Misbehaviour::OutletSlow, boot: None, lasts: Some(late) }]);
        let outlet = Outlet("left".into());
        let asked = Instant::now();
        assert_eq!(pdu.state(&outlet).await.unwrap(), PowerState::Off);
        assert!(asked.elapsed() >= late);
        let asked = Instant::now();
        let given_up = timeout(late / 10, pdu.set(&outlet, PowerState::On)).await;
        assert!(given_up.is_err());
        pdu.set(&outlet, PowerState::On).await.unwrap();
        assert!(asked.elapsed() >= 2 * late, "the second command waits until the first is done");
        assert_eq!(pdu.state(&outlet).await.unwrap(), PowerState::On);
    }
}
