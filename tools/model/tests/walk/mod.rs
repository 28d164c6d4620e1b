//! Walks through all states of a model, and what they must find.

use std::fmt;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

/// A state that can tell which violation has happened.
pub(crate) trait Broken {
    /// The violation.
    fn broken(&self) -> Option<&'static str>;
}

impl Broken for model::shared::State {
    fn broken(&self) -> Option<&'static str> {
        self.broken
    }
}

impl Broken for model::semaphore::State {
    fn broken(&self) -> Option<&'static str> {
        self.broken
    }
}

/// Walk through all of it: nothing that must not be is found, all that must be seen is, and there
/// was something to walk through.
pub(crate) fn holds<M>(model: &M, least: usize)
where
    M: Model + fmt::Debug + Clone + Send + Sync + 'static,
    M::State: Broken + fmt::Debug + Clone + PartialEq + std::hash::Hash + Send + Sync + 'static,
    M::Action: fmt::Debug + Clone + PartialEq + Send + Sync + 'static,
{
    let what = format!("{model:?}");
    let end = model.clone().checker().threads(2).spawn_bfs().join();
    let states = end.unique_state_count();
    println!("{what}: {states} states, {} deep", end.max_depth());
    for property in end.model().properties() {
        match (property.expectation, end.discovery(property.name)) {
            (Expectation::Sometimes, None) => panic!("{what}: never seen: {}", property.name),
            (Expectation::Always, Some(path)) => panic!("{what}: {}", story(property.name, path)),
            _ => {}
        }
    }
    assert!(end.is_done(), "{what}: not walked to its end");
    assert!(states >= least, "{what}: only {states} states");
}

/// A wrong variant ends in this, which is found on the shortest way: a property that does not hold,
/// or what a state says is broken.
pub(crate) fn is_caught<M>(model: &M, found: &str)
where
    M: Model + fmt::Debug + Clone + Send + Sync + 'static,
    M::State: Broken + fmt::Debug + Clone + PartialEq + std::hash::Hash + Send + Sync + 'static,
    M::Action: fmt::Debug + Clone + PartialEq + Send + Sync + 'static,
{
    let what = format!("{model:?}");
    let properties = model.properties();
    let property = properties.iter().find(|one| one.name == found);
    let name = property.map_or("nothing is broken", |property| property.name);
    let wanted = HasDiscoveries::AnyOf([name].into());
    let end = model
        .clone()
        .checker()
        .finish_when(wanted)
        .spawn_bfs()
        .join();
    let states = end.unique_state_count();
    let path = end
        .discovery(name)
        .unwrap_or_else(|| panic!("{what}: nothing in {states} states"));
    let seen = match property {
        Some(_) => name,
        None => path.last_state().broken().unwrap_or(name),
    };
    println!("{what}: {}", story(seen, path));
    assert_eq!(seen, found, "{what}");
}

/// A violation, and the steps to it.
fn story<S, A>(name: &str, path: Path<S, A>) -> String
where
    S: fmt::Debug + Clone + PartialEq,
    A: fmt::Debug + Clone + PartialEq,
{
    let last = path.last_state().clone();
    let acts = path.into_actions();
    let steps: Vec<String> = acts.iter().map(|act| format!("{act:?}")).collect();
    format!(
        "{name} after {} steps: {}\n{last:?}",
        acts.len(),
        steps.join(" ")
    )
}
