//! The cluster, if the server is a node of one.

use mysql_async::Params;

use crate::doctor;
use crate::store::api::StoreError;
use crate::store::doctor::ReportBuilder;
use crate::store::mysql::cluster::Cluster;
use crate::store::mysql::connection::session::Session;
use crate::store::mysql::connection::settings::Settings;

/// With fewer members, those left after one fails are no majority.
const MIN_MEMBERS: f64 = 3.0;
/// The share of the time that commits may wait for a slow node. Above it renewals may come late.
const MAX_PAUSED: f64 = 0.1;

const GALERA: &str = "
    SHOW GLOBAL STATUS WHERE Variable_name IN
        ('wsrep_cluster_size', 'wsrep_local_state', 'wsrep_local_state_comment',
         'wsrep_flow_control_paused')";

const VARIABLES: &str = "
    SHOW VARIABLES WHERE Variable_name IN ('wsrep_node_name', 'wsrep_OSU_method')";

/// The user needs the right to read that table.
const MEMBERS: &str = "
    SELECT COUNT(*), COUNT(IF(member_state = 'ONLINE', 1, NULL)),
           IFNULL(MAX(IF(member_id = @@server_uuid, member_state, NULL)), 'OFFLINE')
      FROM performance_schema.replication_group_members";

impl Session {
    pub(crate) async fn cluster(&mut self, report: &mut ReportBuilder) -> Result<(), StoreError> {
        let member = self.single_primary.then_some(Cluster::Group);
        match self.cluster.or(member) {
            None => Ok(()),
            Some(Cluster::Galera) => {
                galera(&self.settings(&[GALERA, VARIABLES]).await?, report);
                Ok(())
            }
            Some(Cluster::Group) => {
                let kind = match self.single_primary {
                    true => "with a single primary",
                    false => "without a single primary",
                };
                match self.rows_as(MEMBERS, Params::Empty).await {
                    Ok(found) => {
                        for (members, online, state) in found {
                            group(kind, members, online, state, report);
                        }
                        Ok(())
                    }
                    Err(StoreError::Rejected { source, .. }) => {
                        let what =
                            format!("Group Replication {kind} cannot be looked at: {source}");
                        report.found(&doctor::CLUSTER_UNSEEN, what);
                        Ok(())
                    }
                    Err(failure) => Err(failure),
                }
            }
        }
    }
}

fn galera(settings: &Settings, report: &mut ReportBuilder) {
    let (size, state) = (
        settings.number("wsrep_cluster_size").unwrap_or_default(),
        settings.get("wsrep_local_state_comment"),
    );
    let node = settings.get("wsrep_node_name");
    report.fine(
        "cluster",
        format!(
            "Galera: node {node}, one of {size}, {}",
            state.to_lowercase()
        ),
    );
    if size < MIN_MEMBERS {
        report.found(&doctor::CLUSTER_SMALL, format!("there are {size} nodes"));
    }
    // 4 is Synced.
    if settings.is_not("wsrep_local_state", "4") {
        let what = format!("node {node} is {}", state.to_lowercase());
        report.found(&doctor::CLUSTER_BEHIND, what);
    }
    let paused = settings.number("wsrep_flow_control_paused");
    if let Some(paused) = paused.filter(|paused| *paused > MAX_PAUSED) {
        let what = format!(
            "commits have had to wait for {:.0} % of the time",
            paused * 100.0
        );
        report.found(&doctor::CLUSTER_PAUSED, what);
    }
    if settings.is_not("wsrep_osu_method", "TOI") {
        report.found(&doctor::CLUSTER_DDL, settings.shown("wsrep_osu_method"));
    }
}

fn group(kind: &str, members: i64, online: i64, state: String, report: &mut ReportBuilder) {
    let state = state.to_lowercase();
    report.fine(
        "cluster",
        format!("Group Replication {kind}: {online} of {members} are online"),
    );
    if state != "online" {
        let what = format!("this member is {state}");
        report.found(&doctor::CLUSTER_BEHIND, what);
    }
    if (members as f64) < MIN_MEMBERS {
        report.found(
            &doctor::CLUSTER_SMALL,
            format!("there are {members} members"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(report: ReportBuilder) -> Vec<&'static str> {
        let found = report.into_report().findings.into_iter();
        found.map(|found| found.id).collect()
    }

    fn found(changes: &[(&str, &str)]) -> Vec<&'static str> {
        let fine = [
            ("wsrep_node_name", "n1"),
            ("wsrep_cluster_size", "3"),
            ("wsrep_local_state", "4"),
            ("wsrep_local_state_comment", "Synced"),
            ("wsrep_flow_control_paused", "0.004"),
            ("wsrep_osu_method", "TOI"),
        ];
        let all = fine.iter().chain(changes);
        let all = all.map(|(name, value)| ((*name).into(), (*value).into()));
        let mut report = ReportBuilder::new("locks");
        galera(&Settings(all.collect()), &mut report);
        ids(report)
    }

    #[test]
    fn a_node_is_judged_by_what_it_says_of_itself() {
        assert!(found(&[]).is_empty());
        for (name, value, id) in [
            ("wsrep_cluster_size", "2", "cluster-small"),
            ("wsrep_local_state", "2", "cluster-behind"),
            ("wsrep_flow_control_paused", "0.25", "cluster-paused"),
            ("wsrep_osu_method", "RSU", "cluster-ddl"),
        ] {
            assert_eq!(found(&[(name, value)]), [id]);
        }
    }

    #[test]
    fn a_member_of_a_group_too() {
        let found = |members, online, state: &str| {
            let mut report = ReportBuilder::new("locks");
            group("of a test", members, online, state.into(), &mut report);
            ids(report)
        };
        assert!(found(3, 3, "ONLINE").is_empty());
        assert_eq!(found(2, 2, "ONLINE"), ["cluster-small"]);
        assert_eq!(found(3, 2, "RECOVERING"), ["cluster-behind"]);
    }
}
