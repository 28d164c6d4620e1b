//! A cluster of three nodes that can all be written to, beside one server.

use std::time::Duration;

use testkit::{Galera, MySqlServer, time};

use crate::contender::{Contender, Times};
use crate::handover::two;
use crate::held::{self, Held};
use crate::report::{Section, digits, ms, thousands};
use crate::servers::{MARIADB, Servers, database};
use crate::settings::Settings;
use crate::stats::{median, ratio, spread};
use crate::{ours, say, throughput, worker};

const TASKS: usize = 100;
const HELD: u64 = 10_000;

/// One of the two that are compared.
struct Place {
    name: &'static str,
    /// By Unix sockets, of two nodes of a cluster.
    urls: [String; 2],
    /// Over TCP.
    tcp: String,
    lone: Contender,
    all: Times,
    cycle: Vec<f64>,
    many: Vec<f64>,
    handovers: Vec<f64>,
    held: Option<Held>,
}

impl Place {
    fn new(name: &'static str, nodes: [&MySqlServer; 2], tcp: String) -> Self {
        let urls = nodes.map(|node| node.socket_url(database(&tcp)));
        Self {
            name,
            lone: ours::cycles("lone", name, &urls[0], true),
            tcp: format!("{tcp}?sslmode=disable"),
            urls,
            all: Times::default(),
            cycle: Vec::new(),
            many: Vec::new(),
            handovers: Vec::new(),
            held: None,
        }
    }
}

pub(crate) fn run(settings: &Settings, servers: &Servers, length: Duration) -> Section {
    let mut section = Section::default();
    let options = MARIADB
        .iter()
        .fold(Galera::options(), |options, setting| options.set(setting));
    // On the disk, as on the one server.
    let cluster = options.set("innodb-flush-log-at-trx-commit=1").start();
    let (Some(cluster), Some(single)) = (cluster, &servers.mariadb) else {
        section.paragraph("Not measured: the machine of this run lacks what a cluster needs.");
        return section;
    };
    let mut places = [
        Place::new(
            "one MariaDB server",
            [single, single],
            single.fresh_database(),
        ),
        Place::new(
            "Galera, three nodes",
            [cluster.node(0), cluster.node(1)],
            cluster.fresh_database(),
        ),
    ];
    let runtime = crate::tasks_runtime();
    let rounds = settings.rounds.clamp(2, 5);
    let slice = length.mul_f64(0.25).div_f64((rounds * 4) as f64);
    say(&format!(
        "galera: {rounds} rounds of {} ms",
        slice.as_millis()
    ));
    let locks = places
        .each_ref()
        .map(|place| ours::connected(&runtime, &place.urls[0]));
    for round in 0..=rounds {
        let mut order = [0, 1];
        fastrand::shuffle(&mut order);
        for at in order {
            let place = &mut places[at];
            let times = (place.lone.run)(slice);
            let many = runtime.block_on(throughput::cycles(&locks[at], TASKS, true, slice));
            // The first is to warm up.
            if round > 0 {
                place
                    .cycle
                    .push(median(&times.cycles()).unwrap_or(f64::NAN));
                place.all.extend(times);
                place.many.push(many);
            }
        }
    }
    drop(locks);
    into_ticket(&mut places, length.mul_f64(0.3));
    for place in &mut places {
        place.held = held::hold(&place.tcp, HELD, true);
    }

    section.paragraph(format!(
        "A cluster of three nodes on this one machine, which share its processors and its disk, beside one server, \
         in the same run and with the same settings; each commit on the disk of each node. Milliseconds, with the \
         10th and 90th percentile in brackets; cycles a second are the median of {rounds} runs of {} ms, with the \
         least and the most; hand-overs go from one node to another, {} of them. A round renews {} locks.",
        slice.as_millis(),
        places[1].handovers.len(),
        thousands(HELD as i64),
    ));
    let rows: Vec<_> = places.iter().map(row).collect();
    let head = std::iter::once("").chain(places.iter().map(|place| place.name));
    let head: Vec<&str> = head.collect();
    let labels = [
        "acquire",
        "release",
        "cycle",
        "100 tasks on as many locks, cycles a second",
        "hand-over between two processes, p50",
        "hand-over between two processes, p99",
        "10,000 held: statements a round",
        "10,000 held: answered within, a round",
        "10,000 held: processor of the client, a round",
        "10,000 held: lost",
    ];
    let mut table: Vec<Vec<String>> = Vec::new();
    for (at, label) in labels.iter().enumerate() {
        let cells = rows.iter().map(|row| row[at].clone());
        table.push(std::iter::once((*label).to_owned()).chain(cells).collect());
    }
    section.table(&head, &table);
    if let Some(times) = ratio(&places[1].cycle, &places[0].cycle) {
        section.paragraph(format!(
            "A lone task's cycle on the cluster takes {} × that on the one server, the median over the rounds.",
            digits(times)
        ));
    }
    section
}

/// From one process to the other and back, in turns with the other place.
fn into_ticket(places: &mut [Place; 2], length: Duration) {
    let mut turns = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let start = |url: &String| worker::start(&["wait", url, "hand over"]);
        if let (Some(one), Some(other)) = (start(&place.urls[0]), start(&place.urls[1])) {
            turns.push((at, two(one, other)));
        }
    }
    let began = time::now();
    let mut round = 0;
    while began.elapsed() < length || round < 6 {
        for (at, turn) in &mut turns {
            let took = turn();
            if round > 0 {
                places[*at].handovers.push(took);
            }
        }
        round += 1;
    }
}

/// The figures of one place, in the order of the labels.
fn row(place: &Place) -> Vec<String> {
    let around = |values: &[f64]| {
        spread(values).map_or(String::new(), |of| {
            format!("{} ({}–{})", ms(of.p50), ms(of.p10), ms(of.p90))
        })
    };
    let many = spread(&place.many).map_or(String::new(), |of| {
        let least = place.many.iter().copied().fold(f64::MAX, f64::min);
        format!("{} ({}–{})", digits(of.p50), digits(least), digits(of.max))
    });
    let handover = spread(&place.handovers);
    let held = place.held.as_ref();
    let wire = held.and_then(|held| held.wire.as_ref());
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), digits);
    vec![
        around(&place.all.acquire),
        around(&place.all.release),
        around(&place.all.cycles()),
        many,
        shown(handover.map(|of| of.p50)),
        shown(handover.map(|of| of.p99)),
        shown(wire.map(|wire| wire.statements)),
        shown(wire.map(|wire| wire.answered)),
        shown(held.map(|held| held.cpu_ms)),
        held.map_or_else(|| "–".to_owned(), |held| held.lost.to_string()),
    ]
}
