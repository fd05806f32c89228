//! Addresses of files as boot scripts write them: absolute, or relative to the script that names them. ◆
//!
//! ```text
//!  base                          reference        resolved
//!  http://10.0.0.1/boot/a.ipxe   kernel           http://10.0.0.1/boot/kernel
//!  http://10.0.0.1/boot/a.ipxe   /kernel          http://10.0.0.1/kernel
//!  http://10.0.0.1/boot/a.ipxe   ../x?y=1         http://10.0.0.1/x?y=1
//!  tftp://10.0.0.1/a.ipxe        http://10.0.0.2/ http://10.0.0.2/
//! ```

/// How a file is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP/1.1.
    Http,
    /// TFTP.
    Tftp,
}

/// A file's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// How.
    pub scheme: Scheme,
    /// An IPv4 address, or a name.
    pub host: String,
    /// Where the address gives one.
    pub port: Option<u16>,
    /// From its slash on, with the query.
    pub path: String,
}

/// `reference` as seen from the file `base` (RFC 3986, 5.2, as far as boot scripts use it).
pub fn resolve(base: &str, reference: &str) -> String {
    if has_scheme(reference) || !has_scheme(base) {
        return reference.to_owned();
    }
    let authority_start = base.find("://").map_or(0, |at| at + 3);
    let path_start = base[authority_start..].find('/').map_or(base.len(), |at| authority_start + at);
    let (origin, path) = base.split_at(path_start);
    if reference.starts_with('/') {
        return format!("{origin}{reference}");
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let folder = path.rfind('/').map_or("/", |at| &path[..=at]);
    let (name, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
    format!("{origin}{}{query}", without_dots(&format!("{folder}{name}")))
}

impl Uri {
    /// Takes an absolute address apart; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Uri, String> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("`{text}` is not an address"))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "tftp" => Scheme::Tftp,
            // What the 2019 ROM says of https, too.
            other => return Err(format!("Operation not supported: {other}")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| format!("`{port}` is not a port"))?)),
            None => (authority, None),
        };
        if host.is_empty() {
            return Err(format!("`{text}` names no host"));
        }
        let path = if path.is_empty() { "/" } else { path };
        Ok(Uri { scheme, host: host.to_owned(), port, path: path.to_owned() })
    }

    /// The name in a TFTP request: iPXE drops the first slash, because servers dislike it.
    pub fn tftp_name(&self) -> &str {
        self.path.strip_prefix('/').unwrap_or(&self.path)
    }
}

/// Whether `text` begins with a scheme (`http://`, `tftp://`).
pub fn has_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_as_seen_from_its_script() {
        for (base, reference, resolved) in [
            ("http://10.0.0.1:81/boot/a.ipxe", "kernel", "http://10.0.0.1:81/boot/kernel"),
            ("http://10.0.0.1/boot/a.ipxe", "/kernel", "http://10.0.0.1/kernel"),
            ("http://10.0.0.1/boot/a.ipxe", "../x?y=a/../b", "http://10.0.0.1/x?y=a/../b"),
            ("http://10.0.0.1/boot/a.ipxe", "./b/./c", "http://10.0.0.1/boot/b/c"),
            ("http://10.0.0.1/a?from=/x/y", "b", "http://10.0.0.1/b"),
            ("http://10.0.0.1", "b", "http://10.0.0.1/b"),
            ("tftp://10.0.0.1/a.ipxe", "http://10.0.0.2/k", "http://10.0.0.2/k"),
            ("", "http://10.0.0.2/k", "http://10.0.0.2/k"),
        ] {
            assert_eq!(resolve(base, reference), resolved, "{reference} from {base}");
        }
    }

    #[test]
    fn an_address_comes_apart_or_says_why_not() {
        let uri = Uri::parse("tftp://127.0.0.1:6969/pxe/undionly.kpxe").unwrap();
        assert_eq!((uri.scheme, uri.host.as_str(), uri.port), (Scheme::Tftp, "127.0.0.1", Some(6969)));
        assert_eq!(uri.tftp_name(), "pxe/undionly.kpxe");
        assert_eq!(Uri::parse("http://gateway").unwrap().path, "/");
        assert_eq!(Uri::parse("https://gateway/x").unwrap_err(), "Operation not supported: https");
        assert_eq!(Uri::parse("kernel").unwrap_err(), "`kernel` is not an address");
        assert_eq!(Uri::parse("http:///x").unwrap_err(), "`http:///x` names no host");
        assert_eq!(Uri::parse("http://a:b/x").unwrap_err(), "`b` is not a port");
    }
}
