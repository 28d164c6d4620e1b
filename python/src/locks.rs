//! The locks of one table.

use database_locks::{Error, LockSet, LocksBuilder, Prune, Ticket};
use pyo3::prelude::*;
use serde_json::Value as Json;

use crate::convert::{self, seconds};
use crate::credentials::asking;
use crate::errors::raise;
use crate::guard;
use crate::listing::{self, PageRequest};
use crate::observer::Observer;
use crate::pending::{Answer, Pending, nothing, value};

/// The settings that one lock and several have in common.
macro_rules! set_all {
    ($lock:ident, $py:ident, $ttl:ident, $wait:ident, $auto_renew:ident, $renew_every:ident,
     $poll:ident, $meta:ident) => {
        $lock = $lock.ttl(convert::ttl($py, $ttl)?);
        if let Some(every) = $renew_every {
            $lock = $lock.renew_every(seconds($py, "lock_ttl_renew", every)?);
        }
        $lock = $lock.auto_renew($auto_renew);
        if let Some(longest) = $poll {
            $lock = $lock.poll(seconds($py, "retry", longest)?);
        }
        for (key, value) in metadata($meta) {
            $lock = $lock.metadata(key, value);
        }
        if let Some(wait) = $wait {
            $lock = $lock.wait(seconds($py, "timeout", wait)?);
        }
    };
}

#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Locks {
    locks: database_locks::Locks,
    #[pyo3(get)]
    engine: &'static str,
}

impl Locks {
    fn pending<F: Future<Output = Result<Answer, Error>> + Send + 'static>(
        &self,
        work: impl FnOnce(database_locks::Locks) -> F,
    ) -> Pending {
        Pending::new(work(self.locks.clone()))
    }
}

#[pymethods]
impl Locks {
    #[new]
    #[pyo3(signature = (url, table=None, *, password=None, url_with=None, environment=true))]
    fn new(
        py: Python<'_>,
        url: &str,
        table: Option<&str>,
        password: Option<Py<PyAny>>,
        url_with: Option<Py<PyAny>>,
        environment: bool,
    ) -> PyResult<Self> {
        let scheme = url.trim_start().split(':').next().unwrap_or_default();
        let engine = match &*scheme.to_ascii_lowercase() {
            "postgres" | "postgresql" => "postgres",
            "mysql" | "mariadb" => "mysql",
            "sqlite" => "sqlite",
            _ => "memory",
        };
        let mut builder = builder(url, table).environment(environment);
        if let Some(ask) = password {
            builder = builder.password(asking(ask));
        }
        if let Some(ask) = url_with {
            builder = builder.url_with(asking(ask));
        }
        let locks = builder.connect_lazy().map_err(|error| raise(py, error))?;
        Ok(Self { locks, engine })
    }

    #[allow(clippy::too_many_arguments, reason = "each has a name in Python")]
    #[pyo3(signature = (name, *, ttl, wait, auto_renew=true, renew_every=None, holder=None, poll=None, at_least=0.0, once_per=None, meta=None, permits=None, shared=false))]
    fn acquire(
        &self,
        py: Python<'_>,
        name: &str,
        ttl: Option<f64>,
        wait: Option<f64>,
        auto_renew: bool,
        renew_every: Option<f64>,
        holder: Option<&str>,
        poll: Option<f64>,
        at_least: f64,
        once_per: Option<f64>,
        meta: Option<&str>,
        permits: Option<u32>,
        shared: bool,
    ) -> PyResult<Pending> {
        let mut lock = match permits {
            None if shared => self.locks.lock(name).shared(),
            None => self.locks.lock(name),
            Some(permits) => self.locks.semaphore(name, permits),
        };
        set_all!(lock, py, ttl, wait, auto_renew, renew_every, poll, meta);
        if let Some(holder) = holder {
            // No permit and no shared grant is taken over.
            lock = lock.holder(holder).preempt(permits.is_none() && !shared);
        }
        lock = lock.at_least(seconds(py, "at_least", at_least)?);
        if let Some(period) = once_per {
            lock = lock.once_per(seconds(py, "once_per", period)?);
        }
        let once = wait == Some(0.0);
        Ok(Pending::new(guard::acquire(async move {
            let guard = if once && once_per.is_none() {
                lock.try_acquire().await?
            } else {
                match lock.acquire().await {
                    // Not `try_acquire`, which does not tell a busy lock from a recent grant.
                    Err(Error::TimedOut { .. }) if once => None,
                    acquired => Some(acquired?),
                }
            };
            Ok(guard.map(LockSet::from))
        })))
    }

    #[allow(clippy::too_many_arguments, reason = "each has a name in Python")]
    #[pyo3(signature = (names, *, ttl, wait, auto_renew=true, renew_every=None, holder=None, poll=None, meta=None))]
    fn acquire_all(
        &self,
        py: Python<'_>,
        names: Vec<String>,
        ttl: Option<f64>,
        wait: Option<f64>,
        auto_renew: bool,
        renew_every: Option<f64>,
        holder: Option<&str>,
        poll: Option<f64>,
        meta: Option<&str>,
    ) -> PyResult<Pending> {
        let mut locks = self.locks.all(names);
        set_all!(locks, py, ttl, wait, auto_renew, renew_every, poll, meta);
        if let Some(holder) = holder {
            locks = locks.holder(holder);
        }
        let once = wait == Some(0.0);
        Ok(Pending::new(guard::acquire(async move {
            if once {
                return locks.try_acquire().await;
            }
            locks.acquire().await.map(Some)
        })))
    }

    #[pyo3(signature = (ticket, *, ttl, auto_renew=true, renew_every=None))]
    fn resume(
        &self,
        py: Python<'_>,
        ticket: &str,
        ttl: Option<f64>,
        auto_renew: bool,
        renew_every: Option<f64>,
    ) -> PyResult<Pending> {
        let ticket: Ticket = ticket.parse().map_err(|error| raise(py, error))?;
        let lock = self.locks.lock(ticket.name().as_str());
        let mut lock = lock.ttl(convert::ttl(py, ttl)?).auto_renew(auto_renew);
        if let Some(every) = renew_every {
            lock = lock.renew_every(seconds(py, "lock_ttl_renew", every)?);
        }
        Ok(Pending::new(guard::acquire(async move {
            lock.resume(&ticket).await.map(|guard| Some(guard.into()))
        })))
    }

    fn migrate(&self) -> Pending {
        self.pending(|locks| async move {
            locks.migrate().await?;
            Ok(nothing())
        })
    }

    #[pyo3(signature = (*, free=true))]
    fn list(&self, free: bool) -> Pending {
        self.pending(move |locks| async move {
            let found = listing::list(&locks, free).await?;
            Ok(value(found))
        })
    }

    #[pyo3(signature = (text, state, page, rows, order=None))]
    fn page(
        &self,
        text: String,
        state: Option<String>,
        page: i64,
        rows: usize,
        order: Option<String>,
    ) -> Pending {
        let request = PageRequest {
            text,
            state,
            order,
            page,
            rows,
        };
        self.pending(|locks| async move {
            let found = listing::page(&locks, request).await?;
            Ok(value(found))
        })
    }

    fn show(&self, name: String) -> Pending {
        self.pending(|locks| async move {
            let info = locks.show(&name).await?;
            Ok(value(info.map(|info| info.to_json())))
        })
    }

    fn observe(&self, name: &str) -> Observer {
        Observer::new(self.locks.leader(name).observe())
    }

    fn show_semaphore(&self, name: String) -> Pending {
        self.pending(|locks| async move {
            let semaphore = locks.show_semaphore(&name).await?;
            Ok(value(semaphore.to_json()))
        })
    }

    fn show_shared(&self, name: String) -> Pending {
        self.pending(|locks| async move { Ok(value(listing::shared(&locks, &name).await?)) })
    }

    fn force_release_shared(&self, name: String) -> Pending {
        self.pending(|locks| async move {
            let freed = locks.force_release_shared(&name).await?.into_iter();
            let freed = freed.map(|it| (it.holder, it.held_for.map(|age| age.as_secs_f64())));
            Ok(value(freed.collect::<Vec<_>>()))
        })
    }

    fn set_limit(&self, name: String, limit: Option<u32>) -> Pending {
        self.pending(move |locks| async move {
            locks.set_limit(&name, limit).await?;
            Ok(nothing())
        })
    }

    fn guard_table(&self, table: String, lock: String, allow_cascades: bool) -> Pending {
        self.pending(move |locks| async move {
            match allow_cascades {
                true => locks.guard_table_allowing_cascades(&table, &lock).await?,
                false => locks.guard_table(&table, &lock).await?,
            }
            Ok(nothing())
        })
    }

    fn unguard_table(&self, table: String) -> Pending {
        self.pending(move |locks| async move { Ok(value(locks.unguard_table(&table).await?)) })
    }

    fn guarded_tables(&self) -> Pending {
        self.pending(|locks| async move {
            let found = locks.guarded_tables().await?;
            let found: Vec<_> = found
                .into_iter()
                .map(|guard| {
                    let lock = guard.lock.as_str().to_owned();
                    (guard.table, lock, guard.gaps, guard.bypasses)
                })
                .collect();
            Ok(value(found))
        })
    }

    #[pyo3(signature = (name, slot=None))]
    fn force_release(&self, name: String, slot: Option<u16>) -> Pending {
        self.pending(move |locks| async move {
            let previous = match slot {
                None => locks.force_release(&name).await?,
                Some(slot) => locks.force_release_permit(&name, slot).await?,
            };
            Ok(value(previous.map(|previous| {
                let held_for = previous.held_for.map(|age| age.as_secs_f64());
                (previous.holder, held_for, previous.rested)
            })))
        })
    }

    fn prune(&self, py: Python<'_>, idle: f64, include_legacy: bool) -> PyResult<Pending> {
        let mut what = Prune::older_than(seconds(py, "idle", idle)?);
        if include_legacy {
            what = what.include_legacy();
        }
        Ok(self.pending(|locks| async move { Ok(value(locks.prune(what).await?)) }))
    }

    fn doctor(&self) -> Pending {
        self.pending(|locks| async move {
            let report = locks.doctor().await?;
            Ok(value(report.to_json()))
        })
    }

    fn drain(&self) -> Pending {
        self.pending(|locks| async move {
            locks.drain().await;
            Ok(nothing())
        })
    }

    fn expire(&self, name: String) -> Pending {
        self.pending(|locks| async move {
            let done = database_locks::__testing::expire(&locks, &name).await?;
            Ok(value(done))
        })
    }

    fn lose(&self, name: String) -> Pending {
        self.pending(|locks| async move {
            let done = database_locks::__testing::lose(&locks, &name).await?;
            Ok(value(done))
        })
    }
}

/// The caller's metadata, a JSON object.
fn metadata(meta: Option<&str>) -> serde_json::Map<String, Json> {
    match meta.map(serde_json::from_str) {
        Some(Ok(Json::Object(keys))) => keys,
        _ => serde_json::Map::new(),
    }
}

pub(crate) fn builder(url: &str, table: Option<&str>) -> LocksBuilder {
    let builder = database_locks::Locks::builder(url);
    match table {
        Some(table) => builder.table(table),
        None => builder,
    }
}
