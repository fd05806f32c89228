//! The driver against an emulator that is not ours, and against answers as the specification has them.

use std::path::Path;

use ::tests::bench::need_programs;
use ::tests::lab::Running;
use ::tests::packages::python;

use super::super::counterparts_tests::World;
use super::super::recorded_tests::{Recorded, build, exchange, mistakes, outlet};
use super::*;

const SYSTEM: &str = "27946b59-9e44-4fa7-8e91-f3527a1ef094";

/// What throws the dice for how long its machine takes is told to be quick; nothing else of it is changed.
const QUICK: &str = "import random
random.randint = lambda low, high: low
from sushy_tools.emulator import main
main.main()";

/// sushy-tools' controller of a machine that is not there, with a certificate of its own. `wharf`'s password is `maple sugar`.
fn start(world: &World) -> Running {
    need_programs(&[("openssl", "openssl")]);
    let (certificate, key) = (world.path("certificate.pem"), world.path("key.pem"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=controller"]);
    openssl.args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-out").arg(&certificate).arg("-keyout").arg(&key);
    let output = openssl.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let users = world.write("users", "wharf:$2b$04$nl8BLozJVGNkLIvYWK5le./b5F/1l.nqPNbiPhQWkJmEOWHuTqwbW\n");
    let state = world.path("state");
    std::fs::create_dir(&state).unwrap();
    let settings = [("STATE_DIR", &state), ("AUTH_FILE", &users), ("SSL_CERT", &certificate), ("SSL_KEY", &key)];
    let mut configuration =
        "SUSHY_EMULATOR_FAKE_DRIVER = True\nSUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = 443\n"
            .to_owned();
    for (name, path) in settings {
        configuration += &format!("SUSHY_EMULATOR_{name} = '{}'\n", path.display());
    }
    let file = world.write("sushy.conf", &configuration).display().to_string();
    let program = python(&["sushy-tools==2.2.0"]).join("python");
    world.start(&program, &["-c", QUICK, "--config", &file], "Running on")
}

/// As an admin finds it out.
fn fingerprint(certificate: &Path) -> String {
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(certificate);
    let said = String::from_utf8(openssl.output().unwrap().stdout).unwrap();
    said.trim().rsplit('=').next().unwrap().to_owned()
}

fn keys(more: &Value) -> Value {
    let mut keys = json!({"url": "https://127.0.0.1", "user": "wharf", "password": "maple sugar"});
    keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    keys
}

#[test]
fn a_real_emulator_is_switched_over_its_own_certificate_and_no_other_is_taken() {
    let Some(world) = World::new() else { return };
    let _controller = start(&world);
    let certificate = world.path("certificate.pem");
    let pinned = json!({"certificate_sha256": fingerprint(&certificate)});
    world.inside(async {
        let pdu = build::<Keys>(&keys(&pinned), None);
        let system = outlet(SYSTEM);
        assert_eq!(pdu.state(&system).await.unwrap(), PowerState::Off);
        for state in [PowerState::On, PowerState::On, PowerState::Off] {
            pdu.set(&system, state).await.unwrap();
            assert_eq!(pdu.state(&system).await.unwrap(), state);
        }
        let outlets = pdu.outlets().await.unwrap().unwrap();
        assert_eq!(outlets, [OutletInfo { outlet: system.clone(), label: Some("fake".into()) }]);
        assert_eq!(pdu.meter(&system).await.unwrap(), None, "the emulator has no meter");
        let own = build::<Keys>(&keys(&pinned), Some("lab-board-1"));
        assert_eq!(own.state(&outlet("lab-board-1")).await.unwrap(), PowerState::Off);

        let told = async |more: Value| build::<Keys>(&keys(&more), None).state(&system).await.unwrap_err().to_string();
        let other = told(json!({"certificate_sha256": "00".repeat(32)})).await;
        let actual = fingerprint(&certificate).replace(':', "").to_ascii_lowercase();
        assert!(other.contains(&format!("it has another certificate, with the SHA-256 {actual}")), "{other}");
        let unknown = told(json!({})).await;
        assert!(unknown.starts_with(&format!("outlet `{SYSTEM}`: 127.0.0.1: ")) && unknown.contains("ertificate"), "{unknown}");
        let mut wrong = pinned.clone();
        wrong["password"] = json!("maple syrup");
        assert_eq!(
            told(wrong).await,
            format!(
                "outlet `{SYSTEM}`: 127.0.0.1 refuses the login: check `user` and `password`, and that it allows basic logins"
            )
        );
        let seven = pdu.state(&outlet("7")).await.unwrap_err().to_string();
        assert_eq!(seven, format!("outlet `7`: no such outlet; outlets: {SYSTEM}"));
    });
}

#[tokio::test]
async fn watts_are_those_of_the_chassis_and_a_machine_on_its_way_is_waited_for() {
    let unit = Recorded::http(&exchange("redfish.txt")).await;
    let pdu = build::<Keys>(&keys(&json!({"url": format!("http://{}", unit.host())})), None);
    let system = outlet("437XR1138R2");
    assert_eq!(pdu.meter(&system).await.unwrap(), Some(Reading { watts: Some(344.0), joules: None }));
    assert_eq!(pdu.state(&system).await.unwrap(), PowerState::On);
    let refused = pdu.set(&system, PowerState::Off).await.unwrap_err().to_string();
    assert!(refused.ends_with(" answered 409 Conflict: `The machine is being updated.`"), "{refused}");
    let cannot = pdu.set(&system, PowerState::Off).await.unwrap_err().to_string();
    assert_eq!(cannot, "outlet `437XR1138R2`: it knows no `ForceOff`; it knows: On, GracefulShutdown");
    unit.was_played_to_its_end();
}

#[test]
fn keys_that_do_not_make_a_controller_are_told() {
    let told = |more: Value| mistakes::<Keys>(&keys(&more), None);
    assert_eq!(told(json!({"url": "10.0.0.40"})), ["url: `10.0.0.40` is no URL: relative URL without a base"]);
    assert_eq!(told(json!({"url": "https://bmc/redfish/v1"})), ["url: it must be a scheme and a host and no more"]);
    assert_eq!(told(json!({"user": ""})), ["user: it is empty or has a colon"]);
    assert_eq!(told(json!({"certificate_sha256": "AB:CD"})), ["certificate_sha256: it has no 64 hexadecimal digits"]);
    assert_eq!(
        told(json!({"certificate_authority": "no-such.pem"})),
        ["certificate_authority: no-such.pem: No such file or directory (os error 2)"]
    );
    assert_eq!(
        told(json!({"certificate_sha256": "00".repeat(32), "certificate_authority": "ca.pem"})),
        ["certificate_authority: one of `certificate_sha256` and `certificate_authority` is enough"]
    );
}
