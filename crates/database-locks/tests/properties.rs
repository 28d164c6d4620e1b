//! Names, durations, tickets, URLs and metadata of users are kept unchanged or refused with a
//! message. Nothing panics, and no password is repeated.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::Duration;

use database_locks::blocking::Locks;
use database_locks::{Error, LockName, Ticket, Ttl, parse_duration};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

/// What a ticket leaves as it is.
const TICKET: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Any characters, those that mean something somewhere often.
fn text(most: usize) -> impl Strategy<Value = String> {
    let one = prop_oneof![
        4 => any::<char>(),
        2 => prop::sample::select("'\"\\%_;-/@:?&=#[](),. \t\n\0`$*+~".chars().collect::<Vec<_>>()),
        2 => prop::char::range('0', 'z'),
    ];
    prop::collection::vec(one, 0..most).prop_map(|chars| chars.into_iter().collect())
}

/// A good name.
fn name() -> impl Strategy<Value = String> {
    text(255).prop_filter_map("empty, or has a NUL", |text| {
        let text = text.replace('\0', "");
        (!text.is_empty()).then_some(text)
    })
}

/// Something like a URL: its parts are good ones, and any text in their place.
fn url() -> impl Strategy<Value = String> {
    let scheme = prop_oneof![
        prop::sample::select(vec![
            "postgres://",
            "postgresql://",
            "mysql://",
            "mariadb://",
            "sqlite:",
            "sqlite://",
            "memory:",
        ])
        .prop_map(str::to_owned),
        text(8),
    ];
    let part = || {
        prop_oneof![
            prop::sample::select(vec![
                "u:hunter2@",
                "h",
                "h:1",
                "h:99999",
                "[::1]:5432",
                "a,b:2",
                "/db",
                "/",
                "?",
                "&",
                "sslmode=",
                "sslmode=require",
                "host=/tmp",
                "port=x",
                "%2",
                "%00",
                "%ff",
                "table=x",
                "connect_timeout=-1",
            ])
            .prop_map(str::to_owned),
            text(6),
        ]
    };
    (scheme, prop::collection::vec(part(), 0..7))
        .prop_map(|(scheme, parts)| scheme + &parts.concat())
}

fn is_said(error: impl Into<Error>) {
    let error = error.into();
    assert!(matches!(error, Error::Config { .. }), "{error:?}");
    assert!(!error.chain().contains("hunter2"), "{}", error.chain());
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

/// The seeds of failures are not kept in a file: what fails becomes a test.
fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(n)
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_name_is_kept_unchanged_or_refused(given in text(300)) {
        let good = (1..=255).contains(&given.chars().count()) && !given.contains('\0');
        match LockName::new(&given) {
            Ok(name) => prop_assert!(good && name.as_str() == given),
            Err(error) => {
                prop_assert!(!good, "{given:?}");
                is_said(error);
            }
        }
    }

    #[test]
    fn a_duration_is_parsed_or_refused(given in text(12), n in 0_u32..=u32::MAX, unit in 0_usize..6) {
        for error in [parse_duration(&given).err(), given.parse::<Ttl>().err()].into_iter().flatten() {
            is_said(error);
        }
        let (unit, ms) = [("ms", 1), ("s", 1000), ("", 1000), ("m", 60_000), ("h", 3_600_000),
            ("d", 86_400_000)][unit];
        let exact = Duration::from_millis(u64::from(n) * ms);
        let read = parse_duration(&format!("{n}{unit}")).unwrap();
        prop_assert!(read.abs_diff(exact) <= exact / 1_000_000_000 + Duration::from_nanos(1), "{read:?}");
    }

    #[test]
    fn a_ticket_is_parsed_as_it_was_written(
        name in name(), token in 0..=i64::MAX, grant in "[0-9a-f]{32}", any in text(80),
    ) {
        if let Err(error) = any.parse::<Ticket>() {
            is_said(error);
        }
        let written = format!("{token}.{grant}.{}", utf8_percent_encode(&name, TICKET));
        let ticket: Ticket = written.parse().unwrap();
        prop_assert_eq!(ticket.name().as_str(), &name);
        prop_assert_eq!(ticket.token().get(), token);
        prop_assert_eq!(ticket.to_string(), written);
    }

    #[test]
    fn a_url_is_parsed_or_refused(url in url(), table in prop::option::of(text(12))) {
        let mut builder = Locks::builder(&url);
        if let Some(table) = table {
            builder = builder.table(table);
        }
        match builder.connect_lazy() {
            // Of an SQLite file it is a part of the path.
            Ok(_) if url.starts_with("sqlite:") => {}
            Ok(locks) => prop_assert!(!format!("{locks:?}").contains("hunter2"), "{locks:?}"),
            Err(error) => is_said(error),
        }
    }
}

proptest! {
    // Each takes a lock.
    #![proptest_config(cases(64))]

    #[test]
    fn metadata_is_returned_unchanged_or_refused(name in name(), key in text(20), value in text(3000)) {
        let locks = Locks::connect("memory:properties").unwrap();
        match locks.lock(&*name).metadata(&*key, &*value).try_acquire() {
            Err(error) => is_said(error),
            Ok(guard) => {
                let _guard = guard.expect("free");
                let row = locks.show(&*name).unwrap().expect("held");
                let message = row.parsed_metadata();
                prop_assert_eq!(message["meta"][&key].as_str(), Some(&*value));
                prop_assert_eq!(row.name.as_str(), &name);
                let _ = row.description();
                let json: serde_json::Value = serde_json::from_str(&row.to_json()).unwrap();
                prop_assert_eq!(json["name"].as_str(), Some(&*name));
            }
        }
    }
}
