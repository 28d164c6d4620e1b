//! Parsing hosts, ports and sockets.

use std::path::Path;

use super::dialect::Dialect;
use super::server::Address;
use crate::error::Error;
use crate::store::connect::invalid::{decode, invalid};

/// The hosts and ports as they are written.
#[derive(Default)]
pub(super) struct HostList {
    /// A name, address or path each, and its port; empty if there is no host.
    pub(super) entries: Vec<(String, Option<u16>)>,
    /// The ports of the option: one for all hosts, or one for each.
    pub(super) ports: Vec<u16>,
}

impl HostList {
    /// `host:port,[::1]:port,%2Frun%2Fsocket`
    pub(super) fn listed(text: &str) -> Result<Self, Error> {
        let mut entries = Vec::new();
        for place in text.split(',') {
            let (host, port) = host_and_port(place)?;
            entries.push((decode(host, "host")?, port));
        }
        let ports = Vec::new();
        Ok(Self { entries, ports })
    }

    pub(super) fn socket(&mut self, path: String) -> Result<(), Error> {
        if !path.starts_with('/') {
            return invalid(
                "has a socket that is no path",
                "write socket=/absolute/path",
            );
        }
        if self.entries.len() > 1 {
            let hint = "give either; in a list of hosts a socket is written as %2Fpath%2Fto%2Fit";
            return invalid("has several hosts and a socket", hint);
        }
        self.entries = vec![(path, None)];
        Ok(())
    }

    /// Whether there is no host.
    pub(super) fn is_empty(&self) -> bool {
        match &*self.entries {
            [] => true,
            [(host, _)] => host.is_empty(),
            _ => false,
        }
    }

    pub(super) fn has_port(&self) -> bool {
        !self.ports.is_empty() || self.entries.iter().any(|(_, port)| port.is_some())
    }

    /// Hosts and ports are filled in separately, as in libpq.
    pub(super) fn fill(&mut self, from: Self) {
        let port = self.entries.iter().find_map(|(_, port)| *port);
        if self.is_empty() && !from.is_empty() {
            self.entries = from.entries;
            self.ports = port.map_or_else(|| std::mem::take(&mut self.ports), |port| vec![port]);
        }
        if port.is_none() && self.ports.is_empty() {
            self.ports = from.ports;
        }
    }

    pub(super) fn addresses(self, dialect: &Dialect) -> Result<Vec<Address>, Error> {
        let (mut entries, ports) = (self.entries, &self.ports);
        if entries.is_empty() {
            entries.push((String::new(), None));
        }
        let count = entries.len();
        if ports.len() > 1 && ports.len() != count {
            return invalid(
                format!("has {count} hosts and {} ports", ports.len()),
                "give one port for all hosts, or one for each",
            );
        }
        let port_of = |at: usize| ports.get(at).or(ports.first()).copied();
        let address = |(at, (host, port)): (usize, (String, Option<u16>))| {
            let port = port_of(at).or(port).unwrap_or(dialect.port);
            Ok(match host {
                path if path.starts_with('/') => {
                    Address::Unix((dialect.socket)(Path::new(&path), port))
                }
                host if !host.is_empty() => Address::Tcp(host, port),
                _ if count == 1 => Address::Tcp("localhost".into(), port),
                _ => return invalid("has an empty host in its list", "write HOST:PORT,HOST:PORT"),
            })
        };
        entries.into_iter().enumerate().map(address).collect()
    }
}

pub(super) fn ports(value: &str) -> Result<Vec<u16>, Error> {
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
    match value.split(',').map(port).collect() {
        Some(ports) => Ok(ports),
        None => invalid("has a port that is no number from 1 to 65535", "correct it"),
    }
}

fn host_and_port(place: &str) -> Result<(&str, Option<u16>), Error> {
    let (host, port) = match place
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((v6, rest)) => (v6, rest.strip_prefix(':')),
        None => match place.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    match port.filter(|p| !p.is_empty()).map(str::parse::<u16>) {
        None => Ok((host, None)),
        Some(Ok(port)) if port > 0 => Ok((host, Some(port))),
        // Not shown: in `postgres://user:pass word/db` this is the password.
        Some(_) => invalid(
            "has a port that is no number from 1 to 65535",
            "write `@`, `:` and `/` in a user name or password as %40, %3A and %2F",
        ),
    }
}
