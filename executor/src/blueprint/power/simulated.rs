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

    fn machine(&self, outlet: &Outlet) -> Result<&Machine, PowerError> {
        self.machines.get(&outlet.0).map(Arc::as_ref).ok_or_else(|| {
            let known: Vec<&str> = self.machines.keys().map(String::as_str).collect();
            error(outlet, format!("no such outlet; outlets: {}", known.join(", ")))
        })
    }
}

impl Pdu for SimulatedPdu {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        Box::pin(async move {
            let switched = self.machine(outlet)?.set_power(state).await;
            switched.map_err(|cause| error(outlet, format!("cannot switch the simulated DUT {state}: {cause}")))
        })
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        Box::pin(async move { Ok(self.machine(outlet)?.power().await) })
    }
}

fn error(outlet: &Outlet, reason: String) -> PowerError {
    PowerError { outlet: outlet.0.clone(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SimulatedConfig;
    use crate::virtual_dut::simulated::Wire;

    fn pdu() -> SimulatedPdu {
        let machine = |number: u8| {
            let wire =
                Wire::Loopback { address: [127, 77, 1, number].into(), dhcp: ([127, 0, 0, 1], 9).into(), tftp_port: 9 };
            Machine::new(SimulatedConfig::default(), &format!("52:54:00:00:01:0{number}"), wire).unwrap()
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
}
