//! Why a connection failed or ended, as a sentence for people.
//!
//! QUIC reports a wrong secret as "the cryptographic handshake failed: error 48". The operator who reads
//! `weave status connections` at three in the morning shall read what is wrong and what helps. Which side finds
//! out what depends on the moment: with TLS 1.3 the dialler checks first and the listener second, and whoever
//! checks tells the other by an alert. So each case is met twice, as *our* verdict on the other's certificate
//! and as the *other's* verdict on ours, and both are put into words here.

use quinn::{ConnectionError, TransportErrorCode};
use weave_proto::peer::{Refusal, RefusalCode};
use weave_topology::Reason;

/// TLS alerts that a wrong certificate leads to (RFC 8446 section 6.2): bad_certificate, certificate_unknown,
/// unknown_ca, decrypt_error, access_denied.
const CERTIFICATE_ALERTS: [u8; 5] = [42, 46, 48, 51, 49];
/// The other side wants a certificate and got none: it is no weave peer.
const CERTIFICATE_REQUIRED: u8 = 116;
/// The other side speaks another protocol on that port.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// What an agent that ends says to those it leaves.
pub(super) const STOPPING: &str = "the agent at the other side is stopping";

/// The other side's agent refused, with a text of its own.
pub(super) fn refused(refusal: &Refusal) -> Reason {
    let text = if refusal.text.is_empty() {
        format!("the other side closed the connection ({})", title(refusal.code))
    } else {
        format!("the other side refused: {}", printable(&refusal.text))
    };
    Reason { text, refused: Some(refusal.code) }
}

/// This side refused.
pub(super) fn closed_here(refusal: &Refusal) -> Reason {
    // The text is written for the other side.
    let text = if refusal.text == STOPPING {
        "this agent is stopping"
    } else if refusal.text.is_empty() {
        title(refusal.code)
    } else {
        &refusal.text
    };
    Reason::from(format!("closed here: {text}"))
}

/// What QUIC's error means. `established` says whether the hellos had been exchanged.
pub(super) fn explain(error: &ConnectionError, established: bool) -> Reason {
    match error {
        ConnectionError::TimedOut if established => {
            Reason::from("the other side has gone silent: nothing heard for 3 seconds")
        }
        ConnectionError::TimedOut => Reason::from(
            "no answer: is an agent running there, and does a firewall let this UDP port through?",
        ),
        ConnectionError::Reset => Reason::from("the other side has restarted"),
        ConnectionError::VersionMismatch => {
            Reason::from("what answers there speaks no QUIC version that weave does: is it a weave agent?")
        }
        ConnectionError::TransportError(error) => verdict(error.code, &error.to_string(), Whose::Ours),
        ConnectionError::ConnectionClosed(close) => {
            verdict(close.error_code, &String::from_utf8_lossy(&close.reason), Whose::Theirs)
        }
        ConnectionError::ApplicationClosed(close) => {
            let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
            let text = String::from_utf8_lossy(&close.reason).into_owned();
            refused(&Refusal { code: RefusalCode::from(code), text })
        }
        ConnectionError::LocallyClosed => Reason::from("closed here"),
        ConnectionError::CidsExhausted => Reason::from("too many connections at once"),
    }
}

#[derive(Clone, Copy)]
enum Whose {
    Ours,
    Theirs,
}

fn verdict(code: TransportErrorCode, detail: &str, whose: Whose) -> Reason {
    let number = u64::from(code);
    let alert = u8::try_from(number ^ 0x100).ok().filter(|_| number & !0xff == 0x100);
    match (alert, whose) {
        (Some(alert), Whose::Ours) if CERTIFICATE_ALERTS.contains(&alert) => Reason::from(
            "the other side holds another cluster secret: its certificate does not come from one of ours; put \
             the same secret on both nodes",
        ),
        (Some(alert), Whose::Theirs) if CERTIFICATE_ALERTS.contains(&alert) => Reason::from(
            "the other side holds another cluster secret: it does not accept our certificate; put the same \
             secret on both nodes",
        ),
        (Some(CERTIFICATE_REQUIRED), _) => {
            Reason::from("the other side showed no certificate: it is no weave agent")
        }
        (Some(NO_APPLICATION_PROTOCOL), _) => {
            Reason::from("what answers there speaks QUIC but is no weave agent")
        }
        _ if code == TransportErrorCode::CONNECTION_REFUSED => Reason::from(
            "the other side accepts no connections right now: it is stopping or has too many attempts",
        ),
        (_, Whose::Ours) => Reason::from(format!("the connection broke: {}", printable(detail))),
        (_, Whose::Theirs) => Reason::from(
            format!("the other side broke the connection: {code} {}", printable(detail)).trim_end(),
        ),
    }
}

/// What a stranger wrote, made fit for a log and a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// A few words for a refusal that came without any.
const fn title(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::Goodbye => "goodbye",
        RefusalCode::Duplicate => "there is another connection between these two",
        RefusalCode::Myself => "the peer has reached itself",
        RefusalCode::Version => "no common wire version",
        RefusalCode::NameCollision => "another peer has the same name",
        RefusalCode::Range => "another address range",
        RefusalCode::Universe => "another first split of the range",
        RefusalCode::Electorate => "another number of founders",
        RefusalCode::Limit => "the connection limit is reached",
        RefusalCode::Garbage => "a message could not be read",
        RefusalCode::Removed => "the peer has been removed",
        RefusalCode::Other(_) => "for a reason of a later version",
    }
}
