//! The driver against net-snmp with a script for the tree of a unit.

use std::path::Path;

use ::tests::bench::need_programs;
use ::tests::lab::Running;
use serde_json::{Value, json};

use super::super::counterparts_tests::World;
use super::super::recorded_tests::{build, mistakes};
use super::*;

const ENGINE: &str = "80001f8804776861726669";

/// net-snmp's agent with a unit behind it: `private` may write, `public` may read.
fn start(world: &World) -> Running {
    need_programs(&[("snmpd", "snmpd"), ("python3", "python3")]);
    world.write("unit.py", include_str!("../../../../../fixtures/blueprints/power/apc-like-unit.py"));
    let users = [
        ("md5des", "MD5", "DES", "priv"),
        ("shaaes", "SHA", "AES", "priv"),
        ("sha256aes256", "SHA-256", "AES-256", "priv"),
        ("shaaes192", "SHA", "AES-192", "priv"),
        ("sha512", "SHA-512", "", "auth"),
        ("nobody", "", "", "noauth"),
    ];
    let mut configuration = format!(
        "agentaddress udp:127.0.0.1:161\nexactEngineID 0x{ENGINE}\nrwcommunity private\nrocommunity public\n\
         pass_persist .1.3.6.1.4.1.318 /usr/bin/env python3 {script}\npass_persist .1.3.6.1.4.1.3808 /usr/bin/env python3 {script}\n",
        script = world.path("unit.py").display()
    );
    for (user, auth, privacy, level) in users {
        let auth = if auth.is_empty() { String::new() } else { format!(" {auth} \"maple sugar\"") };
        let privacy = if privacy.is_empty() { String::new() } else { format!(" {privacy} \"lemon curd\"") };
        configuration += &format!("createUser {user}{auth}{privacy}\nrwuser {user} {level}\n");
    }
    let file = world.write("snmpd.conf", &configuration).display().to_string();
    world.start(Path::new("snmpd"), &["-f", "-Lo", "-C", "-c", &file], "NET-SNMP version")
}

fn apc(more: &Value) -> Value {
    let mut keys = json!({"host": "127.0.0.1", "preset": "apc_masterswitch"});
    keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    keys
}

fn outlet(name: &str) -> Outlet {
    Outlet(name.to_owned())
}

#[test]
fn outlets_are_switched_and_read_by_every_version_and_security_of_snmp() {
    let Some(world) = World::new() else { return };
    let _agent = start(&world);
    let (auth, privacy) = ("maple sugar", "lemon curd");
    let accesses = [
        json!({}),
        json!({"version": 2}),
        json!({"version": 3, "security_username": "md5des", "auth_protocol": "MD5", "auth_password": auth,
               "privacy_protocol": "DES", "privacy_password": privacy}),
        json!({"version": 3, "security_username": "shaaes", "auth_protocol": "SHA", "auth_password": auth,
               "privacy_protocol": "AES", "privacy_password": privacy, "security_engine_id": ENGINE, "context_engine_id": ENGINE}),
        json!({"version": 3, "security_username": "sha256aes256", "auth_protocol": "SHA-256", "auth_password": auth,
               "privacy_protocol": "AES-256", "privacy_password": privacy}),
        json!({"version": 3, "security_username": "shaaes192", "auth_protocol": "SHA", "auth_password": auth,
               "privacy_protocol": "AES-192", "privacy_password": privacy}),
        json!({"version": 3, "security_username": "sha512", "auth_protocol": "SHA-512", "auth_password": auth}),
        json!({"version": 3, "security_username": "nobody"}),
    ];
    world.inside(async {
        let mut is = PowerState::Off;
        for access in &accesses {
            let pdu = build::<Keys>(&apc(access), None);
            assert_eq!(
                pdu.state(&outlet("1")).await.unwrap_or_else(|error| panic!("{access}: {error}")),
                is,
                "{access}"
            );
            is = if is == PowerState::On { PowerState::Off } else { PowerState::On };
            pdu.set(&outlet("1"), is).await.unwrap_or_else(|error| panic!("{access}: {error}"));
            assert_eq!(
                pdu.state(&outlet("1")).await.unwrap_or_else(|error| panic!("{access}: {error}")),
                is,
                "{access}"
            );
            assert_eq!(
                pdu.state(&outlet("2")).await.unwrap_or_else(|error| panic!("{access}: {error}")),
                PowerState::Off
            );
            let outlets = pdu.outlets().await.unwrap_or_else(|error| panic!("{access}: {error}")).unwrap();
            let outlets: Vec<_> = outlets.iter().map(|it| (it.outlet.0.as_str(), it.label.as_deref())).collect();
            assert_eq!(outlets, [("1", Some("board-1")), ("2", Some("board-2")), ("3", Some("spare"))], "{access}");
        }
    });
    assert_eq!(world.read("calls"), "3.1=1\n3.1=2\n".repeat(4));
}

#[test]
fn a_meter_gives_watts_and_joules_and_a_column_that_is_not_there_gives_none() {
    let Some(world) = World::new() else { return };
    let _agent = start(&world);
    world.inside(async {
        for version in [1, 2] {
            let pdu = build::<Keys>(&apc(&json!({"version": version, "community": "public"})), None);
            let read = pdu.meter(&outlet("2")).await.unwrap();
            assert_eq!(read, Some(Reading { watts: Some(10.0), joules: Some(720_000.0) }));
            let tens = build::<Keys>(&apc(&json!({"version": version, "outlet_power_multiplier": 10})), None);
            assert_eq!(tens.meter(&outlet("2")).await.unwrap().unwrap().watts, Some(100.0));
            let not_there =
                json!({"version": version, "outlet_power": "1.3.6.1.4.1.318.9", "outlet_energy": "1.3.6.1.4.1.318.9"});
            assert_eq!(build::<Keys>(&apc(&not_there), None).meter(&outlet("2")).await.unwrap(), None);
        }
    });
}

#[test]
fn identifiers_and_numbers_by_hand_do_what_a_preset_does() {
    let Some(world) = World::new() else { return };
    let _agent = start(&world);
    let by_hand = json!({
        "host": "127.0.0.1:161", "version": 2, "system_id": "3808.1.1.5.6", "outlet_labels": "3.1.2",
        "outlet_status": "3.1.3", "outlet_ctrl": "5.1.3",
        "state_mapping": {"on": 2, "off": 3, "reboot": 4}, "inverse_state_mapping": {"on": 1, "off": 2, "reboot": 3},
    });
    let preset = json!({"host": "127.0.0.1", "preset": "cyberpower_pdu15swhviec12atnet"});
    world.inside(async {
        for (keys, state) in [(by_hand, PowerState::On), (preset, PowerState::Off)] {
            let pdu = build::<Keys>(&keys, None);
            pdu.set(&outlet("2"), state).await.unwrap();
            assert_eq!(pdu.state(&outlet("2")).await.unwrap(), state);
        }
    });
    assert_eq!(world.read("calls"), "3.2=2\n3.2=3\n");
}

#[test]
fn what_is_wrong_with_a_unit_is_said_with_the_next_step() {
    let Some(world) = World::new() else { return };
    let _agent = start(&world);
    let told = async |keys: Value, name: &str| {
        build::<Keys>(&apc(&keys), None).set(&outlet(name), PowerState::On).await.unwrap_err().to_string()
    };
    world.inside(async {
        for version in [1, 2] {
            let no_such = told(json!({"version": version}), "7").await;
            assert_eq!(no_such, "outlet `7`: no such outlet; outlets: 1 (board-1), 2 (board-2), 3 (spare)");
            let no_label = told(json!({"version": version}), "board-1").await;
            assert_eq!(no_label, "outlet `board-1`: no such outlet; outlets: 1 (board-1), 2 (board-2), 3 (spare)");
        }
        let read_only = told(json!({"version": 2, "community": "public"}), "1").await;
        assert_eq!(read_only, "outlet `1`: 127.0.0.1:161 does not let us write: check what the community or user may do");
        let read_only = told(json!({"community": "public"}), "1").await;
        assert_eq!(
            read_only,
            "outlet `1`: 127.0.0.1:161 has nothing that we may write at 1.3.6.1.4.1.318.1.1.4.4.2.1.3; look at the identifiers and \
             at what the community may do"
        );
        let number = told(json!({"version": 2, "state_mapping": {"on": 77, "off": 2}}), "1").await;
        assert_eq!(number, "outlet `1`: 127.0.0.1:161 does not take this number; look at `state_mapping`");
        let refused = "outlet `1`: 127.0.0.1:161 refuses the user: check `security_username`, protocols and passwords, and what \
                       the user may do";
        let user = json!({"version": 3, "security_username": "stranger", "auth_protocol": "SHA", "auth_password": "maple sugar"});
        assert_eq!(told(user, "1").await, refused);
        let password = json!({"version": 3, "security_username": "sha512", "auth_protocol": "SHA-512", "auth_password": "maple syrup"});
        assert_eq!(told(password, "1").await, refused);
        assert_eq!(told(json!({"version": 3, "security_username": "stranger"}), "1").await, refused);
        let nobody = told(json!({"host": "127.0.0.1:162"}), "1").await;
        assert_eq!(nobody, "outlet `1`: 127.0.0.1:162: nobody answers SNMP there; check `host` and that SNMP is switched on");
        let nothing = told(json!({"outlet_labels": "1.3.6.1.4.1.318.9"}), "board-1").await;
        assert_eq!(
            nothing,
            "outlet `board-1`: 127.0.0.1:161 has no outlets at 1.3.6.1.4.1.318.9; look at `preset` or `outlet_labels`"
        );
        let community = told(json!({"community": "wrong"}), "1").await;
        assert_eq!(
            community,
            "outlet `1`: 127.0.0.1:161 gave no answer to SNMP in 6 s; a wrong `community` is not answered, nor is version 1 where \
             it is switched off"
        );
    });
}

#[test]
fn an_outlet_that_never_does_it_is_left_to_the_read_back() {
    let Some(world) = World::new() else { return };
    let _agent = start(&world);
    world.inside(async {
        let pdu = build::<Keys>(&apc(&json!({})), None);
        pdu.set(&outlet("3"), PowerState::On).await.unwrap();
        assert_eq!(pdu.state(&outlet("3")).await.unwrap(), PowerState::Off);
    });
}

#[test]
fn keys_that_do_not_go_together_are_told() {
    let told = |more: Value| mistakes::<Keys>(&apc(&more), None);
    assert_eq!(told(json!({"version": 4})), ["version: there is no version 4"]);
    assert_eq!(told(json!({"auth_protocol": "SHA"})), ["auth_protocol: version 1 has no `auth_protocol`"]);
    assert_eq!(told(json!({"version": 3})), ["security_username: version 3 needs a user"]);
    assert_eq!(told(json!({"version": 3, "community": "public"})), ["community: version 3 has no community"]);
    let user = |more: Value| {
        let mut keys = json!({"version": 3, "security_username": "wharf"});
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        told(keys)
    };
    assert_eq!(user(json!({"auth_protocol": "SHA"})), ["auth_password: `auth_password` is missing"]);
    assert_eq!(user(json!({"auth_password": "long enough"})), ["auth_protocol: `auth_protocol` is missing"]);
    let short = json!({"auth_protocol": "SHA", "auth_password": ""});
    assert_eq!(user(short), ["auth_password: it has fewer than 8 characters"]);
    let unsigned = json!({"privacy_protocol": "AES", "privacy_password": "long enough"});
    assert_eq!(user(unsigned), ["privacy_protocol: what is encrypted must be signed, too"]);
    assert_eq!(
        user(json!({"security_engine_id": "80x0"})),
        ["security_engine_id: `80x0` is not in pairs of hexadecimal digits"]
    );
    assert_eq!(user(json!({"security_engine_id": "8000"})), ["security_engine_id: `8000` has another length"]);
    let proxy = json!({"security_engine_id": "8000000001", "context_engine_id": "8000000002"});
    assert_eq!(user(proxy), ["context_engine_id: a context of another engine is not supported"]);
    assert_eq!(
        mistakes::<Keys>(&json!({"host": "a b", "outlet_status": "1.3.x", "system_id": "318"}), None),
        [
            "host: `a b` is not a host",
            "outlet_status: `1.3.6.1.4.1.318.1.3.x` is not an object identifier",
            ": `outlet_labels` is missing, and so is `preset`",
            ": `state_mapping` is missing, and so is `preset`",
        ]
    );
}
