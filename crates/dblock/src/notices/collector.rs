//! The `tracing` subscriber: sends events of the library to the printing task.

use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::event::{Fields, LibraryEvent, Message, Part, part_of_target};

pub(super) struct Collector {
    queue: mpsc::UnboundedSender<Message>,
}

impl Collector {
    pub(super) fn new(queue: mpsc::UnboundedSender<Message>) -> Self {
        Self { queue }
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = match part_of_target(metadata.target()) {
            // Records of this level contain the holder of the lock.
            Some(Part::Acquire) => Level::DEBUG,
            Some(Part::Settings | Part::Other) => Level::INFO,
            None => return false,
        };
        metadata.is_event() && *metadata.level() <= level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let Some(part) = part_of_target(metadata.target()) else {
            return;
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        // Sending fails only at the end of the process, after the task.
        let _ = self.queue.send(Message::Event(LibraryEvent {
            level: *metadata.level(),
            part,
            fields,
        }));
    }

    // No span is enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::event::{Outage, Topic};
    use super::*;

    const ACQUIRE: &str = "database_locks::client::acquire";
    const RENEWAL: &str = "database_locks::client::renewal";

    fn collected(emit: impl FnOnce()) -> Vec<LibraryEvent> {
        let (queue, mut messages) = mpsc::unbounded_channel();
        tracing::subscriber::with_default(Collector::new(queue), emit);
        let next = || messages.try_recv().ok();
        std::iter::from_fn(next)
            .map(|message| match message {
                Message::Event(event) => event,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn events_of_the_library_are_classified_by_level_module_and_fields() {
        let events = collected(|| {
            tracing::warn!(target: ACQUIRE, { event = "unavailable", outage_ms = 0_u64 }, "x");
            tracing::info!(target: ACQUIRE, { event = "available", outage_ms = 5_u64 }, "x");
            tracing::info!(target: ACQUIRE, { event = "waiting", lock.token = 1_i64 }, "x");
            tracing::debug!(target: ACQUIRE, { lock.holder = "b", lock.held_ms = 5_u64 }, "x");
            tracing::warn!(target: RENEWAL, { lock.token = 1_i64, locks = 1_usize }, "x");
            tracing::warn!(target: RENEWAL, { lock.token = 1_i64, locks = 1 }, "x");
            tracing::info!(target: RENEWAL, { outage_ms = 5_u64 }, "x");
            tracing::info!(target: RENEWAL, { lock.token = 1_i64 }, "x");
            tracing::warn!(
                target: RENEWAL, { lock.token = 1_i64, lock.lost_reason = "forced" }, "x"
            );
            tracing::warn!(target: "database_locks::store::url::libpq", "x");
            tracing::warn!(target: "database_locks::store::postgres", "x");
        });
        let topics: Vec<Topic> = events.iter().map(LibraryEvent::topic).collect();
        assert_eq!(
            topics,
            [
                Topic::Began(Outage::Wait),
                Topic::Ended(Outage::Wait),
                Topic::Wait,
                Topic::Wait,
                Topic::Began(Outage::Renewals),
                Topic::Began(Outage::Renewals),
                Topic::Ended(Outage::Renewals),
                Topic::Ended(Outage::Renewals),
                Topic::Loss,
                Topic::Notice,
                Topic::Other,
            ]
        );
        let waiting = &events[3].fields;
        assert_eq!(waiting.holder.as_deref(), Some("b"));
        assert_eq!(waiting.held_for, Some(Duration::from_millis(5)));
    }

    #[test]
    fn events_of_other_crates_and_details_of_the_library_are_left_out() {
        let events = collected(|| {
            tracing::error!(target: "tokio_postgres", "x");
            tracing::warn!(target: "database_locks_other", "x");
            tracing::warn!(target: "database_locks::release", "x");
            tracing::warn!(target: "database_locks::client::release", "x");
            tracing::debug!(target: RENEWAL, "x");
            tracing::trace!(target: ACQUIRE, "x");
        });
        assert!(events.is_empty(), "{events:?}");
    }
}
