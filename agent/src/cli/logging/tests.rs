use std::io;
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut page = self.0.lock().map_err(|_| io::Error::other("a writer panicked"))?;
        page.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written while `speak` runs.
fn written(level: LogLevel, format: LogFormat, speak: impl FnOnce()) -> String {
    let page = Page::default();
    let writer = page.clone();
    let subscriber = subscriber(LogSettings { level, format }, move || writer.clone());
    tracing::subscriber::with_default(subscriber, speak);
    let bytes = page.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// The line without the level and the time, which is checked for its form.
fn after_time(line: &str) -> &str {
    let form = line.get(..32).unwrap();
    let digits: String =
        form.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect();
    assert!(digits.ends_with(": 0000/00/00 00:00:00.000000"), "{line}");
    line.get(32..).unwrap().trim_start()
}

#[test]
fn a_line_looks_as_weave_wrote_it() {
    let text = written(LogLevel::Info, LogFormat::Text, || {
        tracing::info!(target: "weave_topology::connector", peer = "7a:3f:00:00:00:02", tries = 3, "connection added");
    });
    assert!(text.starts_with("INFO: 2"), "{text}");
    assert_eq!(after_time(text.trim_end()), "[mesh] connection added peer=7a:3f:00:00:00:02 tries=3");
}

#[test]
fn everything_that_the_allocator_says_is_found_by_ipalloc() {
    let text = written(LogLevel::Debug, LogFormat::Text, || {
        tracing::info!(target: "weave_ipam", "range split");
        tracing::debug!(target: "weave_ipam::ring::merge", "entry refused");
        tracing::info!(target: "ipalloc", "said by the brain");
    });
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().all(|line| line.contains("[ipalloc]")), "{text}");
}

#[test]
fn values_from_elsewhere_stay_on_their_line() {
    let text = written(LogLevel::Info, LogFormat::Text, || {
        let reason = "bad\nERRO: 2026/01/01 forged \"x\" \u{1b}[2J";
        tracing::warn!(target: "weave_agent::peer", reason, "refused by {}", "a\r\nb");
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(
        after_time(text.trim_end()),
        r#"[peer] refused by a\r\nb reason="bad\nERRO: 2026/01/01 forged \"x\" \u{1b}[2J""#
    );
}

#[test]
fn spans_tell_whose_event_it_is() {
    let speak = || {
        let span = tracing::info_span!(target: "weave_agent::cni", "add", container = "a1b2", address = tracing::field::Empty);
        let _entered = span.enter();
        span.record("address", "10.32.0.2");
        tracing::info!(target: "weave_agent::cni", "attached");
    };
    let text = written(LogLevel::Info, LogFormat::Text, speak);
    assert_eq!(after_time(text.trim_end()), "[cni] attached container=a1b2 address=10.32.0.2");
    let json = written(LogLevel::Info, LogFormat::Json, speak);
    let line: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(line["fields"], serde_json::json!({ "container": "a1b2", "address": "10.32.0.2" }));
}

#[test]
fn json_is_one_object_a_line() {
    let text = written(LogLevel::Info, LogFormat::Json, || {
        let error = io::Error::other("no\nway");
        tracing::error!(target: "weave_agent::store", error = &error as &dyn std::error::Error, count = 7_u64, ok = true, "cannot write");
        tracing::info!(target: "weave_agent", "second");
    });
    assert_eq!(text.lines().count(), 2);
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((line["level"].as_str(), line["room"].as_str()), (Some("error"), Some("store")));
    assert_eq!(line["message"], "cannot write");
    assert_eq!(line["fields"], serde_json::json!({ "error": "no\nway", "count": 7, "ok": true }));
}

#[test]
fn libraries_are_heard_only_when_somebody_should_look() {
    let speak = || {
        tracing::info!(target: "quinn::connection", "handshake done");
        tracing::warn!(target: "quinn::connection", "odd");
        tracing::debug!(target: "weave_agent::net", "a decision");
    };
    let info = written(LogLevel::Info, LogFormat::Text, speak);
    assert_eq!(info.lines().count(), 1, "{info}");
    assert!(info.contains("[quinn::connection] odd"), "{info}");
    assert!(written(LogLevel::Debug, LogFormat::Text, speak).contains("[net] a decision"));
    assert_eq!(written(LogLevel::Error, LogFormat::Text, speak), "");
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, expected) in [
        (0, (1970, 1, 1)),
        (951_782_399, (2000, 2, 28)),
        (951_782_400, (2000, 2, 29)),
        (951_868_800, (2000, 3, 1)),
        (1_709_164_800, (2024, 2, 29)),
        (1_735_689_599, (2024, 12, 31)),
        (1_735_689_600, (2025, 1, 1)),
        (4_107_542_400, (2100, 3, 1)),
        (253_402_300_799, (9999, 12, 31)),
    ] {
        assert_eq!(date(Duration::from_secs(seconds)), expected, "{seconds}");
    }
    assert_eq!(time(Duration::from_secs(1_735_689_599)), (23, 59, 59));
}

#[test]
fn every_day_follows_the_one_before() {
    let mut previous = date(Duration::ZERO);
    for day in 1..60_000_u64 {
        let this = date(Duration::from_secs(day * SECONDS_A_DAY));
        let next_day = this == (previous.0, previous.1, previous.2 + 1);
        let next_month = this == (previous.0, previous.1 + 1, 1) && previous.2 >= 28;
        let next_year = this == (previous.0 + 1, 1, 1) && (previous.1, previous.2) == (12, 31);
        assert!(next_day || next_month || next_year, "{previous:?} then {this:?}");
        previous = this;
    }
}
