//! Which streaming protocol a client and this server share, chosen from the request's headers. Pure functions.
//! SPDY/3.1 carries `v1` to `v4.channel.k8s.io`; WebSocket carries `v4` and `v5` and their base64 variants; port-forward has
//! `portforward.k8s.io` on SPDY, the same tunnelled in a WebSocket, and the two-channels-a-port WebSocket form.

use http::{HeaderMap, header};

use super::channel::StatusForm;

/// The header in which a SPDY client lists its protocol versions.
pub const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `Upgrade: SPDY/3.1`.
    Spdy,
    /// `Upgrade: websocket`.
    WebSocket,
}

/// A protocol version of exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// The name that both sides use; empty when a client named none.
    pub name: &'static str,
    /// How an exit is told.
    pub form: StatusForm,
    /// There is a channel for terminal sizes.
    pub resize: bool,
    /// Messages are base64 text (WebSocket only).
    pub base64: bool,
    /// Channel 255 closes another channel (v5, WebSocket only).
    pub close: bool,
}

const fn remote(name: &'static str, form: StatusForm, resize: bool) -> Remote {
    Remote { name, form, resize, base64: false, close: false }
}

/// Ports of one session whose channels are numbered: two a port, in one byte.
pub const CHANNEL_PORTS_MAX: usize = 64;

/// The versions on SPDY, best first, for a client that offers none of them.
pub const SPDY_NAMES: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// Best first.
const SPDY: [Remote; 4] = [
    remote(SPDY_NAMES[0], StatusForm::Json, true),
    remote(SPDY_NAMES[1], StatusForm::Text, true),
    remote(SPDY_NAMES[2], StatusForm::Text, false),
    remote(SPDY_NAMES[3], StatusForm::Text, false),
];

/// Best first; the last is for a client that names none.
const WEBSOCKET: [Remote; 6] = [
    Remote { close: true, ..remote("v5.channel.k8s.io", StatusForm::Json, true) },
    remote("v4.channel.k8s.io", StatusForm::Json, true),
    Remote { base64: true, ..remote("v4.base64.channel.k8s.io", StatusForm::Json, true) },
    remote("channel.k8s.io", StatusForm::Text, true),
    Remote { base64: true, ..remote("base64.channel.k8s.io", StatusForm::Text, true) },
    remote("", StatusForm::Text, true),
];

/// How a port-forward travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// SPDY on the connection itself.
    Spdy,
    /// SPDY inside binary WebSocket messages.
    Tunnel,
    /// Two WebSocket channels a port: data and error.
    Channels {
        /// Messages are base64 text.
        base64: bool,
    },
}

/// The subprotocol names of port-forward with what they mean, best first.
const FORWARD: [(&str, Forward); 4] = [
    ("SPDY/3.1+portforward.k8s.io", Forward::Tunnel),
    ("v4.channel.k8s.io", Forward::Channels { base64: false }),
    ("v4.base64.channel.k8s.io", Forward::Channels { base64: true }),
    ("", Forward::Channels { base64: false }),
];

/// Why a request cannot be served; the text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Plain HTTP.
    #[error("this URL is for an upgrade to SPDY/3.1 or websocket; the request asks for neither")]
    NoUpgrade,
    /// Nothing in common.
    #[error("no common protocol: the client offers {offered:?}")]
    NoCommon {
        /// What it offers.
        offered: Vec<String>,
    },
}

/// The transport that the client asks for.
///
/// # Errors
/// [`Refusal::NoUpgrade`].
pub fn transport(headers: &HeaderMap) -> Result<Transport, Refusal> {
    let upgrade = list(headers, header::UPGRADE.as_str());
    if upgrade.iter().any(|u| u.eq_ignore_ascii_case("websocket")) {
        Ok(Transport::WebSocket)
    } else if upgrade.iter().any(|u| u.eq_ignore_ascii_case("spdy/3.1")) {
        Ok(Transport::Spdy)
    } else {
        Err(Refusal::NoUpgrade)
    }
}

/// The version of exec and attach for this client.
///
/// # Errors
/// [`Refusal::NoCommon`].
pub fn remote_command(transport: Transport, headers: &HeaderMap) -> Result<Remote, Refusal> {
    let (known, name): (&[Remote], _) = match transport {
        Transport::Spdy => (&SPDY, STREAM_PROTOCOL),
        Transport::WebSocket => (&WEBSOCKET, header::SEC_WEBSOCKET_PROTOCOL.as_str()),
    };
    let offered = list(headers, name);
    if offered.is_empty() {
        // The oldest clients name no version.
        return known.last().copied().ok_or(Refusal::NoUpgrade);
    }
    known.iter().find(|k| offered.iter().any(|o| o == k.name)).copied().ok_or(Refusal::NoCommon { offered })
}

/// The form of port-forward for this client, and the name to answer with.
///
/// # Errors
/// [`Refusal::NoCommon`].
pub fn port_forward(transport: Transport, headers: &HeaderMap) -> Result<(&'static str, Forward), Refusal> {
    match transport {
        Transport::Spdy => {
            let offered = list(headers, STREAM_PROTOCOL);
            if offered.is_empty() || offered.iter().any(|o| o == "portforward.k8s.io") {
                Ok(("portforward.k8s.io", Forward::Spdy))
            } else {
                Err(Refusal::NoCommon { offered })
            }
        }
        Transport::WebSocket => {
            let offered = list(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str());
            let offers = |name: &str| offered.iter().any(|o| o == name) || (name.is_empty() && offered.is_empty());
            FORWARD.iter().find(|(name, _)| offers(name)).copied().ok_or(Refusal::NoCommon { offered })
        }
    }
}

/// The values of a header that may be repeated and may hold a list.
fn list(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn the_best_common_version_is_chosen() {
        let spdy = headers(&[
            ("upgrade", "SPDY/3.1"),
            (STREAM_PROTOCOL, "v2.channel.k8s.io"),
            (STREAM_PROTOCOL, "v4.channel.k8s.io"),
        ]);
        assert_eq!(transport(&spdy), Ok(Transport::Spdy));
        assert_eq!(remote_command(Transport::Spdy, &spdy).unwrap().name, "v4.channel.k8s.io");
        let ws =
            headers(&[("upgrade", "websocket"), ("sec-websocket-protocol", "v4.channel.k8s.io, v5.channel.k8s.io")]);
        assert_eq!(transport(&ws), Ok(Transport::WebSocket));
        assert!(remote_command(Transport::WebSocket, &ws).unwrap().close);
        assert_eq!(remote_command(Transport::WebSocket, &headers(&[])).unwrap().name, "");
        assert_eq!(remote_command(Transport::Spdy, &headers(&[])).unwrap().name, "channel.k8s.io");
    }

    #[test]
    fn strangers_are_refused_by_name() {
        assert_eq!(transport(&headers(&[])), Err(Refusal::NoUpgrade));
        let odd = headers(&[(STREAM_PROTOCOL, "v9.channel.k8s.io")]);
        assert_eq!(
            remote_command(Transport::Spdy, &odd),
            Err(Refusal::NoCommon { offered: vec!["v9.channel.k8s.io".into()] })
        );
    }

    #[test]
    fn port_forward_knows_its_three_forms() {
        let tunnel = headers(&[("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")]);
        assert_eq!(port_forward(Transport::WebSocket, &tunnel).unwrap().1, Forward::Tunnel);
        assert_eq!(port_forward(Transport::Spdy, &headers(&[])).unwrap().1, Forward::Spdy);
        let base64 = headers(&[("sec-websocket-protocol", "v4.base64.channel.k8s.io")]);
        assert_eq!(port_forward(Transport::WebSocket, &base64).unwrap().1, Forward::Channels { base64: true });
    }
}
