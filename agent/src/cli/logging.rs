//! The log: lines as Weave Net wrote them, or JSON.
//!
//! ```text
//! INFO: 2026/11/21 08:32:28.123456 [ipalloc] range split founders=3 range=10.32.0.0/12
//! ```
//!
//! The level comes first, the time is UTC, and the part of the agent that speaks stands in brackets: everything
//! that the IP allocator says can be found by `grep ipalloc`, as people are used to. Spans (whose connection,
//! which container) are printed as fields after the event's own. A line is a line: line ends and other control
//! characters in values, which may come from other machines, are escaped.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, LogLevel, LogSettings};

/// Sets up the log of this process, on standard error. A second call changes nothing.
pub fn install(settings: LogSettings) {
    let subscriber = subscriber(settings, std::io::stderr);
    // Only fails where a log exists already, as in tests.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

fn subscriber<W>(settings: LogSettings, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = Lines { format: settings.format, writer };
    tracing_subscriber::registry().with(lines.with_filter(filter(settings.level)))
}

/// Our own rooms as asked; libraries only what somebody should look at, since their INFO is our DEBUG.
fn filter(level: LogLevel) -> Targets {
    let own = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(own.min(LevelFilter::WARN))
        // A packet that cannot be sent is a matter of the link that it was for, which says so in words.
        .with_target("quinn_udp", own.min(LevelFilter::ERROR))
        // Every failed request of the API server is one of a room that says what it was for, and knows whether it matters.
        .with_target(
            "kube_client",
            if own >= LevelFilter::DEBUG { LevelFilter::WARN } else { LevelFilter::OFF },
        )
        .with_target("weave", own)
        .with_target("ipalloc", own)
}

/// The name by which people know the part of the agent that a module belongs to.
fn room(target: &str) -> &str {
    const ROOMS: [(&str, &str); 14] = [
        ("weave_ipam", "ipalloc"),
        ("weave_topology", "mesh"),
        ("weave_overlay", "overlay"),
        ("weave_router", "router"),
        ("weave_agent::peer", "peer"),
        ("weave_agent::net", "net"),
        ("weave_agent::firewall", "firewall"),
        ("weave_agent::cni", "cni"),
        ("weave_agent::store", "store"),
        ("weave_agent::http", "http"),
        ("weave_agent::control", "control"),
        ("weave_agent::identity", "identity"),
        ("weave_agent::kube", "kube"),
        ("weave", "agent"),
    ];
    let belongs = |prefix: &str| {
        target
            .strip_prefix(prefix)
            .is_some_and(|rest| prefix == "weave" || rest.is_empty() || rest.starts_with("::"))
    };
    // A target that is no module path is the name of a room already: `target: "ipalloc"`.
    ROOMS.iter().find(|(prefix, _)| belongs(prefix)).map_or(target, |(_, room)| room)
}

/// Writes each event as a line.
struct Lines<W> {
    format: LogFormat,
    writer: W,
}

/// The fields of a span, kept with it.
struct SpanFields(Vec<(String, Value)>);

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(SpanFields(fields.values));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            values.record(&mut fields);
            if let Some(kept) = span.extensions_mut().get_mut::<SpanFields>() {
                kept.0.extend(fields.values);
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(kept) = span.extensions().get::<SpanFields>() {
                fields.values.extend(kept.0.iter().cloned());
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let metadata = event.metadata();
        let line = match self.format {
            LogFormat::Text => text_line(now, *metadata.level(), room(metadata.target()), &fields),
            LogFormat::Json => json_line(now, *metadata.level(), room(metadata.target()), fields),
        };
        // There is nowhere to complain when the log itself cannot be written.
        let _ = std::io::Write::write_all(&mut self.writer.make_writer(), line.as_bytes());
    }
}

/// What an event says: its message and its values, in the order in which they were given.
#[derive(Default)]
struct Fields {
    message: String,
    values: Vec<(String, Value)>,
}

impl Fields {
    fn keep(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.values.push((name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.keep(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.keep(field, Value::String(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.keep(field, Value::String(text));
    }
}

fn text_line(now: Duration, level: Level, room: &str, fields: &Fields) -> String {
    // Four letters each, as Weave Net had them.
    let level = match level {
        Level::ERROR => "ERRO",
        Level::WARN => "WARN",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBU",
        Level::TRACE => "TRAC",
    };
    let (year, month, day) = date(now);
    let (hour, minute, second) = time(now);
    let micros = now.subsec_micros();
    let mut line = format!(
        "{level}: {year:04}/{month:02}/{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06} [{room}] {}",
        escaped(&fields.message)
    );
    for (name, value) in &fields.values {
        let text = value.as_str().map_or_else(|| value.to_string(), quoted_if_needed);
        let _ = write!(line, " {name}={text}");
    }
    line.push('\n');
    line
}

fn json_line(now: Duration, level: Level, room: &str, fields: Fields) -> String {
    let (year, month, day) = date(now);
    let (hour, minute, second) = time(now);
    let micros = now.subsec_micros();
    // The first of two values by one name is the event's own; a span's does not replace it.
    let mut values = Map::new();
    for (name, value) in fields.values {
        values.entry(name).or_insert(value);
    }
    let line = json!({
        "time": format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"),
        "level": level.as_str().to_ascii_lowercase(),
        "room": room,
        "message": fields.message,
        "fields": values,
    });
    format!("{line}\n")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            let _ = write!(out, "{}", letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out
}

fn quoted_if_needed(text: &str) -> String {
    let plain =
        |letter: char| !letter.is_whitespace() && !letter.is_control() && !matches!(letter, '"' | '=');
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("\"{}\"", escaped(&text.replace('\\', "\\\\").replace('"', "\\\"")))
    }
}

const SECONDS_A_DAY: u64 = 86_400;

/// Hour, minute and second of the day, UTC.
const fn time(since_1970: Duration) -> (u64, u64, u64) {
    let seconds = since_1970.as_secs() % SECONDS_A_DAY;
    (seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Year, month and day in the Gregorian calendar. Counted from 1 March 0000, so that the leap day is the last day
/// of a year and an era of 400 years has 146,097 days.
const fn date(since_1970: Duration) -> (u64, u64, u64) {
    const DAYS_FROM_MARCH_0000_TO_1970: u64 = 719_468;
    const DAYS_AN_ERA: u64 = 146_097;
    let days = since_1970.as_secs() / SECONDS_A_DAY + DAYS_FROM_MARCH_0000_TO_1970;
    let (era, day) = (days / DAYS_AN_ERA, days % DAYS_AN_ERA);
    // Days without the leap days before them, so that a year is 365 of them.
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 153 days in five.
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month_of_year = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + if month_of_year <= 2 { 1 } else { 0 }, month_of_year, day_of_month)
}

#[cfg(test)]
mod tests;
