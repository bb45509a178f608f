//! What both hosts log of a handover carries its identifier.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tcpmig::driver::{Ending, Options};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use crate::doubt::{Case, commit_and_hang_up};
use crate::support::{Family, Net, Site, both_ways, flow, kernel_test};

type Fields = BTreeMap<String, String>;

/// One line of a log, with the spans that it is in.
#[derive(Debug, Clone)]
struct Line {
    level: Level,
    module: String,
    fields: Fields,
    spans: Vec<Fields>,
}

impl Line {
    /// The identifier and the role of the handover that it is in.
    fn handover(&self) -> Option<(&str, &str)> {
        let span = self.spans.iter().find(|span| span["span"] == "handover")?;
        Some((span.get("id")?, span.get("role")?))
    }
}

/// What a host logs from now on.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Line>>>);

struct Take<'a>(&'a mut Fields);

impl Visit for Take<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Take(&mut fields));
        fields.insert("span".to_owned(), attributes.metadata().name().to_owned());
        let span = context.span(id).unwrap();
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            record.record(&mut Take(fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Take(&mut fields));
        let spans = context.event_scope(event).into_iter().flatten();
        let spans = spans.filter_map(|span| span.extensions().get::<Fields>().cloned());
        let line = Line {
            level: *event.metadata().level(),
            module: event.metadata().target().to_owned(),
            fields,
            spans: spans.collect(),
        };
        self.0.lock().unwrap().push(line);
    }
}

impl Log {
    /// Of everything that the host's thread does.
    fn of(site: &Site) -> Self {
        // What another test's thread came to first, with nobody there to listen, is not logged in this one's either otherwise.
        let _ = tracing::subscriber::set_global_default(Registry::default());
        let log = Self::default();
        let taken = log.clone();
        site.call(|here| async move {
            let subscriber = Registry::default().with(taken);
            here.keep(tracing::subscriber::set_default(subscriber));
        });
        log
    }

    /// The lines of the driver, but those about links.
    fn lines(&self) -> Vec<Line> {
        let mut lines = self.0.lock().unwrap().clone();
        lines.retain(|line| {
            line.module.starts_with("tcpmig::driver") && line.module != "tcpmig::driver::acceptor"
        });
        lines
    }
}

kernel_test!(
    both_hosts_log_the_identifier_in_every_line_of_a_handover,
    || {
        let net = Net::new();
        let (a, b) = Site::pair(&net, &Options::default());
        let (at_a, at_b) = (Log::of(&a), Log::of(&b));
        b.serve();
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        let outcome = a.move_out(server, None).wait();
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        let arrived = b.arrival();
        both_ways(&peer, &arrived.socket.into());
        let mut ids = Vec::new();
        for (log, role) in [(at_a, "source"), (at_b, "target")] {
            let lines = log.lines();
            assert!(!lines.is_empty(), "the {role} says nothing");
            for line in &lines {
                let (id, of) = line
                    .handover()
                    .unwrap_or_else(|| panic!("no handover: {line:?}"));
                assert_eq!(of, role, "{line:?}");
                ids.push(id.to_owned());
            }
            let named = |line: &Line| {
                let fields = line.spans.iter().chain([&line.fields]);
                fields
                    .filter_map(|fields| fields.get("flow"))
                    .any(|named| *named == flow.to_string())
            };
            assert!(lines.iter().any(named), "no line names {flow}: {lines:?}");
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "one handover has one identifier: {ids:?}");
    }
);

kernel_test!(
    a_handover_that_becomes_in_doubt_is_a_warning_that_says_what_to_do,
    || {
        let mut options = Options::default();
        options.answer_within = Duration::from_millis(200);
        options.ask_for = Duration::from_millis(300);
        let mut case = Case::with(Net::new(), &options);
        let log = Log::of(&case.a);
        let flow = case.flow;
        let target = case
            .b
            .begin(move |here| async move { commit_and_hang_up(&here, flow).await });
        let outcome = case.move_out().wait();
        assert!(matches!(outcome.ending, Ending::InDoubt(_)), "{outcome:?}");
        let id = target.wait().id.to_string();
        let warnings: Vec<Line> = log
            .lines()
            .into_iter()
            .filter(|line| line.level == Level::WARN)
            .collect();
        let [warning] = &warnings[..] else {
            panic!("one warning, not {warnings:?}");
        };
        assert_eq!(warning.handover(), Some((&*id, "source")));
        let fields = &warning.fields;
        assert_eq!((&fields["id"], &fields["flow"]), (&id, &flow.to_string()));
        assert_eq!(fields["target"], "host-b");
        for part in ["in doubt", "ask again", "by hand"] {
            assert!(fields["message"].contains(part), "{fields:?}");
        }
        drop(outcome);
    }
);
