//! Servers of the loopback, which the farm's own may be told from: what is judged is where it leads, at each hop.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A server that answers everything with this head; how often it was asked.
async fn server(head: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let answer = format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

fn fetcher(trusted: &[String]) -> Fetcher {
    let fetcher = Fetcher::new(Route::Direct, Arc::new(Vec::new)).unwrap();
    let trusted = trusted.iter().map(|text| text.parse().unwrap()).collect();
    fetcher.trust(Fetching { trusted, ..Fetching::default() });
    fetcher
}

async fn get(fetcher: &Fetcher, url: &str, reach: Reach) -> Result<u16, String> {
    let got = fetcher.get(&url.parse().unwrap(), &HeaderMap::new(), Schemes::Any, reach).await;
    got.map(|response| response.status().as_u16()).map_err(|error| match error {
        Failed::Denied(_) => format!("denied: {error}"),
        Failed::Wrong(_) | Failed::Request(_) => error.to_string(),
    })
}

#[tokio::test]
async fn who_may_not_do_everything_reaches_no_loopback_by_address_by_name_or_by_a_redirect() {
    let (secret, asked) = server("200 OK".into()).await;
    let (outer, _) = server(format!("302 Found\r\nLocation: http://localhost:{}/secret", secret.port())).await;
    let fetcher = fetcher(&[outer.to_string()]);
    let port = secret.port();
    let hint = "; an administrator may name it in `downloads.trusted_endpoints`";
    for (url, why) in [
        (format!("http://127.0.0.1:{port}/"), "it leads to 127.0.0.1, the loopback of the farm's host"),
        (format!("http://2130706433:{port}/"), "it leads to 127.0.0.1, the loopback of the farm's host"),
        (format!("http://0x7f.1:{port}/"), "it leads to 127.0.0.1, the loopback of the farm's host"),
        (format!("http://[::ffff:127.0.0.1]:{port}/"), "the loopback of the farm's host"),
        (format!("http://localhost:{port}/"), "the loopback of the farm's host"),
        ("http://169.254.169.254/latest/meta-data/".into(), "it leads to 169.254.169.254, a link-local address"),
        (format!("http://{outer}/"), "the loopback of the farm's host"),
    ] {
        let error = get(&fetcher, &url, Reach::Judged).await.unwrap_err();
        assert!(error.starts_with("denied: ") && error.contains(why) && error.ends_with(hint), "{url}: {error}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "something was connected to");
    assert_eq!(get(&fetcher, &format!("http://{outer}/"), Reach::Everywhere).await, Ok(200));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_trusted_place_is_reached_at_its_port_and_its_redirects_are_judged_again() {
    let (file, _) = server("200 OK".into()).await;
    let (other, asked) = server("200 OK".into()).await;
    let (redirect, _) = server(format!("307 Temporary Redirect\r\nLocation: http://{other}/x")).await;
    let fetcher = fetcher(&[file.to_string(), redirect.to_string(), format!("localhost:{}", file.port())]);
    assert_eq!(get(&fetcher, &format!("http://{file}/"), Reach::Judged).await, Ok(200));
    assert_eq!(get(&fetcher, &format!("http://localhost:{}/", file.port()), Reach::Judged).await, Ok(200));
    assert!(get(&fetcher, &format!("http://localhost:{}/", other.port()), Reach::Judged).await.is_err());
    assert!(get(&fetcher, &format!("http://{redirect}/"), Reach::Judged).await.unwrap_err().starts_with("denied: "));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn redirects_are_followed_ten_times_and_to_nothing_but_http() {
    let (file, _) = server("302 Found\r\nLocation: file:///etc/passwd".into()).await;
    let (round, asked) = server("301 Moved Permanently\r\nLocation: /again".into()).await;
    let fetcher = fetcher(&[]);
    let error = get(&fetcher, &format!("http://{file}/"), Reach::Everywhere).await.unwrap_err();
    assert_eq!(error, "a redirect to `file:`; only http and https are followed");
    let error = get(&fetcher, &format!("http://{round}/"), Reach::Everywhere).await.unwrap_err();
    assert_eq!(error, "more than 10 redirects");
    assert_eq!(asked.load(Ordering::SeqCst), 11);
    let url = format!("http://{file}/").parse().unwrap();
    let clear = fetcher.get(&url, &HeaderMap::new(), Schemes::Https, Reach::Everywhere).await.unwrap_err();
    assert_eq!(clear.to_string(), format!("only https:// is fetched here, and http://{file}/ is not"));
}

#[test]
fn the_hosts_of_proxies_are_those_that_the_environment_names() {
    let variables = [("http_proxy", "http://proxy.lab:3128"), ("HTTPS_PROXY", "other.lab:3128"), ("all_proxy", "")];
    let of = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    assert_eq!(proxies(of), ["proxy.lab", "other.lab"]);
}
