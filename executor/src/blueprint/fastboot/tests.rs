//! Loaders that do as they like, over a TCP connection to this process: byte for byte what the host says, and how it ends.

use std::net::Ipv4Addr;

use gateway::content::Content;
use gateway::net::Net;
use job_schema::job::TextMatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

/// Short, for tests that wait for its end; none of the others comes near.
const SHORT: Patience = Patience {
    show_up: Duration::from_millis(300),
    answer: Duration::from_millis(300),
    command: Duration::from_millis(900),
};
/// Longer than a message takes on a busy machine.
const LONG: Patience =
    Patience { show_up: Duration::from_secs(30), answer: Duration::from_secs(30), command: Duration::from_secs(60) };

/// What a loader does next.
enum Act {
    /// Expects these bytes.
    Hear(&'static [u8]),
    /// Says these bytes.
    Say(&'static [u8]),
    /// Does nothing, with the connection open.
    Stop,
    /// Says INFO again and again, for ever.
    Chatter,
}

use Act::{Chatter, Hear, Say, Stop};

/// A loader that plays these acts on its first connection.
async fn loader(acts: Vec<Act>) -> (Loader, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = tcp::Address { net: Net::host(), socket: listener.local_addr().unwrap() };
    let playing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for act in acts {
            play(&mut stream, act).await;
        }
    });
    (Loader::Tcp(address), playing)
}

async fn play(stream: &mut TcpStream, act: Act) {
    match act {
        Hear(expected) => {
            let mut heard = vec![0; expected.len()];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard.escape_ascii().to_string(), expected.escape_ascii().to_string());
        }
        Say(bytes) => stream.write_all(bytes).await.unwrap(),
        Stop => std::future::pending().await,
        Chatter => while stream.write_all(b"\0\0\0\0\0\0\0\x08INFOwait").await.is_ok() {},
    }
}

/// Has it boot nine bytes.
async fn boot_nine(loader: &Loader, patience: &Patience) -> (Result<Duration, Fault>, Vec<Heard>) {
    let image = Content::Inline(Bytes::from_static(b"ANDROID!\0")).open().await.unwrap();
    let variables = vec![("product".to_owned(), TextMatch::from("redfin".to_owned()))];
    let mut heard = Vec::new();
    let given = match loader.reach(patience).await {
        Err(fault) => Err(fault),
        Ok(mut link) => {
            let order = Order { variables, image_bytes: 9 };
            boot(&mut *link, order, &image, patience, &mut |what| heard.push(what)).await
        }
    };
    (given, heard)
}

async fn told(acts: Vec<Act>, patience: &Patience) -> String {
    let (loader, playing) = loader(acts).await;
    let (given, _) = boot_nine(&loader, patience).await;
    playing.abort();
    given.unwrap_err().to_string()
}

/// Until the image is to be sent.
fn until_data() -> Vec<Act> {
    vec![
        Say(b"FB01"),
        Hear(b"FB01\0\0\0\0\0\0\0\x0egetvar:product"),
        Say(b"\0\0\0\0\0\0\0\x0aOKAYredfin"),
        Hear(b"\0\0\0\0\0\0\0\x18getvar:max-download-size"),
        Say(b"\0\0\0\0\0\0\0\x08OKAY0x10"),
        Hear(b"\0\0\0\0\0\0\0\x11download:00000009"),
        Say(b"\0\0\0\0\0\0\0\x0cDATA00000009"),
    ]
}

#[tokio::test]
async fn a_loader_hears_every_byte_that_the_protocol_has_and_boots() {
    let mut acts = until_data();
    acts.extend([
        Hear(b"\0\0\0\0\0\0\0\x09ANDROID!\0"),
        // An answer may come in pieces.
        Say(b"\0\0\0\0\0\0\0\x08IN"),
        Say(b"FOread"),
        Say(b"\0\0\0\0\0\0\0\x04OKAY"),
        Hear(b"\0\0\0\0\0\0\0\x04boot"),
        Say(b"\0\0\0\0\0\0\0\x04OKAY"),
    ]);
    let (loader, playing) = loader(acts).await;
    let (given, heard) = boot_nine(&loader, &LONG).await;
    given.unwrap();
    playing.await.unwrap();
    assert_eq!(heard, [Heard::Ready, Heard::Took(9), Heard::Line("read".into())]);
}

#[tokio::test]
async fn a_loader_that_goes_away_ends_it_wherever_that_is() {
    let broken = |error: &str| error.contains("the connection broke");
    let error = told(vec![Say(b"FB01"), Hear(b"FB01")], &LONG).await;
    assert!(broken(&error) && error.contains("in `getvar:product`"), "{error}");
    let mut acts = until_data();
    acts.extend([Hear(b"\0\0\0\0\0\0\0\x09ANDROID!\0"), Say(b"\0\0\0\0\0\0\0\x04OK")]);
    let error = told(acts, &LONG).await;
    assert!(broken(&error) && error.contains("in `download:00000009`"), "{error}");
}

#[tokio::test]
async fn a_loader_that_falls_silent_ends_it_in_time() {
    let error = told(vec![Say(b"FB01"), Hear(b"FB01"), Stop], &SHORT).await;
    assert_eq!(error, "no answer to `getvar:product` within 0 s");
    let error = told(vec![Say(b"FB01"), Hear(b"FB01"), Chatter], &LONG).await;
    assert_eq!(error, "it said 200 lines and never answered `getvar:product`");
}

#[tokio::test]
async fn what_is_no_fastboot_is_told() {
    let error = told(vec![Say(b"SSH-2.0-OpenSSH\r\n"), Stop], &LONG).await;
    assert_eq!(error, "it says `SSH-` where fastboot says `FB01`");
    let error = told(vec![Say(b"FB01"), Say(b"HTTP/1.1 400 Bad Request\r\n"), Stop], &LONG).await;
    let expected = u64::from_be_bytes(*b"HTTP/1.1");
    let expected = format!("an answer of {expected} bytes; fastboot's have at most 256");
    assert!(error.ends_with(&expected), "{error}");
}

#[tokio::test]
async fn a_loader_that_comes_late_is_waited_for_and_one_that_never_comes_is_not() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let socket = listener.local_addr().unwrap();
    drop(listener);
    let absent = Loader::Tcp(tcp::Address { net: Net::host(), socket });
    let (given, _) = boot_nine(&absent, &SHORT).await;
    let error = given.unwrap_err().to_string();
    assert!(error.starts_with("it did not show up within 0 s of power-on: "), "{error}");
    assert_eq!(absent.to_string(), format!("the fastboot loader at {socket}"));
    let reaching = tokio::spawn(async move { absent.reach(&LONG).await.map(drop) });
    let listener = loop {
        // The port was free a moment ago, and may be in use for a moment by the loader's last caller.
        match TcpListener::bind(socket).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"FB01").await.unwrap();
    reaching.await.unwrap().unwrap();
}

/// For whoever has a device: `WHARF_FASTBOOT_USB` is its serial number, `WHARF_FASTBOOT_IMAGE` what it is to boot.
#[tokio::test]
async fn a_device_on_usb_boots_an_image() {
    let Ok(serial) = std::env::var("WHARF_FASTBOOT_USB") else {
        return eprintln!("WHARF_FASTBOOT_USB names no device: nothing was tried");
    };
    let path = std::env::var_os("WHARF_FASTBOOT_IMAGE").expect("WHARF_FASTBOOT_IMAGE names a boot image");
    let image = Content::File(path.into()).open().await.unwrap();
    let image_bytes = image.complete_size().await.unwrap();
    let device = Loader::Usb(usb::Device { serial: Some(serial.clone()), path: None });
    let mut link = device.reach(&Patience::default()).await.unwrap();
    let mine = vec![("serialno".to_owned(), TextMatch::from(serial))];
    let order = Order { variables: mine, image_bytes };
    let mut told = |heard: Heard| println!("{heard:?}");
    let took = boot(&mut *link, order, &image, &Patience::default(), &mut told).await.unwrap();
    println!("{device} took {image_bytes} bytes in {took:?}");
}
