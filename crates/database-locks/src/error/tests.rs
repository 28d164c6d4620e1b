use super::*;

#[test]
fn a_database_that_answers_is_not_reported_as_unreachable() {
    let error = |source: BoxError| {
        let op = "acquire lock `job`".into();
        Error::Unavailable { op, source }.chain()
    };
    assert_eq!(
        error("connection refused".into()),
        "could not acquire lock `job`: the database cannot be reached: connection refused"
    );
    assert_eq!(
        error(
            Cause {
                message: "its disk is full".into(),
                answered: true,
                undone: false,
            }
            .into(),
        ),
        "could not acquire lock `job`: the database cannot do it now: its disk is full"
    );
}

#[test]
fn a_refusal_says_the_cause_first_and_then_the_hint() {
    let source = "permission denied for table x".into();
    let hint = Some("as the owner: GRANT UPDATE".to_owned());
    let error = Error::rejected("acquire lock `job`", hint, source);
    assert_eq!(
        error.chain(),
        "could not acquire lock `job`: the database refused: permission denied for table x; as \
         the owner: GRANT UPDATE"
    );
    // Other printers of error chains do the same.
    let source = StdError::source(&error).unwrap();
    assert_eq!(
        format!("{error}: {source}"),
        error.chain(),
        "a message never repeats its source"
    );
    assert!(source.source().is_none());
}

#[test]
fn a_timeout_names_the_holder_and_its_age() {
    let error = Error::TimedOut {
        name: LockName::new("job").unwrap(),
        waited: Duration::from_millis(1500),
        holder: Some("db1.17.ab".into()),
        held_for: Some(Duration::from_secs(125)),
        rests_for: None,
        permits: None,
        shared_by: None,
        row_locker: None,
    };
    assert_eq!(
        error.to_string(),
        "lock `job` not acquired within 1.5s: held by db1.17.ab for 2m 5s"
    );
}

#[test]
fn a_timeout_of_a_lock_that_rests_says_for_how_long() {
    let error = Error::TimedOut {
        name: LockName::new("job").unwrap(),
        waited: Duration::ZERO,
        holder: Some("db1.17.ab".into()),
        held_for: None,
        rests_for: Some(Duration::from_secs(40)),
        permits: None,
        shared_by: None,
        row_locker: None,
    };
    assert_eq!(
        error.to_string(),
        "lock `job` not acquired within 0ms: resting for another 40s after db1.17.ab"
    );
}

#[test]
fn a_grant_that_is_too_recent_is_named_with_its_age_and_the_period() {
    let error = |holder: Option<&str>| {
        let latest = LatestGrant {
            holder: holder.map(str::to_owned),
            ago: Duration::from_secs(4),
        };
        let name = LockName::new("job").unwrap();
        Error::already_ran(&name, Duration::from_secs(3_600), latest).to_string()
    };
    assert_eq!(
        error(Some("db1.17.ab")),
        "lock `job` not acquired: it was granted to db1.17.ab 4s ago, and is granted once per 1h \
         0m"
    );
    assert!(error(None).contains("it was granted 4s ago"));
}
