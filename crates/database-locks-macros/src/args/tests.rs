use super::*;

fn refused(args: &str) -> String {
    match syn::parse_str::<Args>(args) {
        Ok(_) => panic!("{args} was taken"),
        Err(error) => error.to_string(),
    }
}

fn ttl(args: &str) -> Option<Duration> {
    match syn::parse_str::<Args>(args).unwrap().ttl {
        Some(Length::Fixed(length)) => Some(length),
        _ => None,
    }
}

#[test]
fn everything_is_optional() {
    let args = syn::parse_str::<Args>("").unwrap();
    assert!(args.name.is_none() && args.ttl.is_none() && args.core.is_none());
}

#[test]
fn a_name_stands_alone_or_with_its_key() {
    for args in [
        "\"a\"",
        "\"a\",",
        "name = \"a\"",
        "ttl = \"1s\", name = f(id)?",
    ] {
        assert!(
            syn::parse_str::<Args>(args).unwrap().name.is_some(),
            "{args}"
        );
    }
    assert_eq!(refused("\"a\", name = \"b\""), "`name` is given twice");
    assert!(refused("ttl = \"1s\", \"a\"").contains("goes first"));
}

#[test]
fn the_ends_of_the_ttl_range_are_within_it() {
    assert_eq!(ttl("ttl = \"100ms\""), Some(Duration::from_millis(100)));
    assert!(ttl("ttl = \"3652.5d\"").is_some());
    for beyond in ["99ms", "0", "3652.6d"] {
        let message = refused(&format!("ttl = \"{beyond}\""));
        assert!(message.contains("100ms"), "{message}");
    }
}

#[test]
fn only_a_ttl_is_without_end() {
    let args = syn::parse_str::<Args>("ttl = \"inf\"").unwrap();
    assert!(matches!(args.ttl, Some(Length::Infinite)));
    assert!(refused("wait = \"inf\"").contains("left out"));
    assert!(refused("margin = \"inf\"").contains("half of the ttl"));
}

#[test]
fn the_least_hold_and_the_period_have_bounds_of_their_own() {
    let args = syn::parse_str::<Args>("at_least = \"0\", once_per = \"100ms\"").unwrap();
    assert!(matches!(args.at_least, Some(Length::Fixed(Duration::ZERO))));
    assert!(matches!(args.once_per, Some(Length::Fixed(_))));
    assert!(syn::parse_str::<Args>("at_least = f(), once_per = PERIOD").is_ok());
    for (args, allowed) in [
        ("at_least = \"3653d\"", "ten years"),
        ("at_least = \"inf\"", "ten years"),
        ("once_per = \"99ms\"", "100ms"),
        ("once_per = \"inf\"", "100ms"),
    ] {
        let message = refused(args);
        assert!(message.contains(allowed), "{message}");
    }
    assert!(refused("every = \"1h\"").contains("did you mean `once_per`?"));
}

#[test]
fn a_wait_of_zero_is_a_try() {
    let args = syn::parse_str::<Args>("wait = \"0\"").unwrap();
    assert!(matches!(args.wait, Some(Length::Fixed(Duration::ZERO))));
}

#[test]
fn a_key_that_is_not_known_is_answered_with_those_that_are() {
    assert!(refused("timeout = \"5s\"").contains(KEYS));
    let message = refused("no_wait");
    assert!(
        message.contains(KEYS) && message.contains("`name = no_wait`"),
        "{message}"
    );
    assert!(refused("timeout = \"5s\"").contains("did you mean `wait`?"));
}

#[test]
fn a_name_without_its_key_is_a_constant_or_a_macro_too() {
    for args in [
        "NAME",
        "crate::names::report",
        "Self::NAME, ttl = \"1s\"",
        "concat!(\"a\", \"b\")",
    ] {
        assert!(
            syn::parse_str::<Args>(args).unwrap().name.is_some(),
            "{args}"
        );
    }
    for args in ["5", "ttl(\"5s\")", "\"a\".len()"] {
        assert!(refused(args).contains("`name = …`"), "{args}");
    }
}

#[test]
fn metadata_is_pairs_or_an_expression_of_such() {
    let metadata = |args| syn::parse_str::<Args>(args).unwrap().metadata;
    let pairs = metadata("metadata = [(\"a\", 1), (KEY, f()),]");
    assert!(matches!(pairs, Some(Metadata::Pairs(pairs)) if pairs.len() == 2));
    assert!(matches!(
        metadata("metadata = map"),
        Some(Metadata::Computed(_))
    ));
    for value in ["\"a\"", "[1]", "[(\"a\", 1, 2)]", "[(1, \"a\")]"] {
        assert!(
            refused(&format!("metadata = {value}")).contains("pairs"),
            "{value}"
        );
    }
}

#[test]
fn the_same_holder_again_must_be_named() {
    assert!(refused("\"a\", preempt = true").contains("`holder`"));
    for other in [
        "once_per = \"1h\"",
        "at_least = \"1s\"",
        "preempt = true, holder = \"me\"",
    ] {
        let text = refused(&format!("\"a\", shared = true, {other}"));
        assert!(text.contains("for an exclusive lock"), "{text}");
        let off = format!("\"a\", shared = false, {other}");
        assert!(syn::parse_str::<Args>(&off).is_ok());
    }
    for args in [
        "preempt = true, holder = \"me\"",
        "preempt = on",
        "preempt = false",
    ] {
        assert!(syn::parse_str::<Args>(args).is_ok(), "{args}");
    }
}

#[test]
fn the_core_may_have_another_name() {
    let args = syn::parse_str::<Args>("crate = crate::vendored::locks").unwrap();
    assert_eq!(args.core.unwrap().segments.len(), 3);
}
