//! Whether the table can hold locks, from its definition.

/// The collation that tells all names apart.
pub(crate) fn collation(mariadb: bool) -> &'static str {
    match mariadb {
        true => "utf8mb4_nopad_bin",
        false => "utf8mb4_0900_bin",
    }
}

/// An option of a table, from its `SHOW CREATE TABLE`.
pub(crate) fn option<'a>(create_table: &'a str, name: &str) -> Option<&'a str> {
    let options = create_table.lines().rfind(|line| line.starts_with(')'))?;
    let mut options = options
        .split([' ', ')'])
        .filter_map(|option| option.split_once('='));
    options
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// Why a table cannot hold locks, from its `SHOW CREATE TABLE`. It finds defects that would go
/// unnoticed: two names may be one lock, or two clients may both acquire a lock. The statements
/// themselves report a missing column.
pub(super) fn table_defect(create_table: &str, collation: &str) -> Option<String> {
    // Without the quotes, which can be switched off.
    let create_table = create_table.replace('`', "");
    let option = |name: &str| option(&create_table, name);
    let engine = option("ENGINE").unwrap_or("none (is it a view?)");
    if !engine.eq_ignore_ascii_case("InnoDB") {
        let why = "without transactions two could get the same lock";
        return Some(format!("its engine is {engine}, and {why}"));
    }
    let mut lines = create_table
        .lines()
        .map(|line| line.trim().trim_end_matches(','));
    let name = lines.clone().find_map(|line| line.strip_prefix("name "))?;
    // The column has one if it differs from that of the table.
    let mut words = name.split(' ').take_while(|word| *word != "COMMENT");
    let of_column = match words.clone().any(|word| word == "COLLATE") {
        true => words.skip_while(|word| *word != "COLLATE").nth(1),
        // Then it is the default of that character set.
        false => words
            .any(|word| word == "CHARACTER")
            .then_some("its character set"),
    };
    let found = of_column
        .or(option("COLLATE"))
        .unwrap_or("its character set");
    if found != collation {
        let why = "and not byte for byte: two names could be one lock";
        return Some(format!("it compares names by {found}, {why}"));
    }
    let unique = lines.any(|line| {
        let key = line
            .strip_prefix("UNIQUE KEY ")
            .or(line.strip_prefix("PRIMARY KEY "));
        key.is_some_and(|key| key.contains("(name)"))
    });
    let why = "it may hold the same name twice: two could get the same lock";
    (!unique).then(|| why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_judged_by_how_it_was_made() {
        let ours = "CREATE TABLE `database_locks_lock` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `name` varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL,
  `locked_by` longtext DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `name` (`name`)
) ENGINE=InnoDB AUTO_INCREMENT=7 DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci";
        let judged = |from: &str, to: &str| {
            assert!(ours.contains(from), "{from}");
            table_defect(&ours.replace(from, to), "utf8mb4_nopad_bin")
        };
        assert_eq!(judged("", ""), None);
        assert_eq!(judged("`", ""), None);
        assert_eq!(
            judged(" CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin", "")
                .map(|why| why.contains("utf8mb4_general_ci")),
            Some(true)
        );
        for (from, to, word) in [
            ("InnoDB", "MyISAM", "MyISAM"),
            (" COLLATE utf8mb4_nopad_bin", "", "byte for byte"),
            ("utf8mb4_nopad_bin", "utf8mb4_bin", "utf8mb4_bin"),
            ("  UNIQUE KEY `name` (`name`)\n", "", "twice"),
            ("  UNIQUE KEY", "  KEY", "twice"),
            ("(`name`)", "(`name`,`id`)", "twice"),
            (ours, "CREATE VIEW x AS SELECT 1", "view"),
        ] {
            let why = judged(from, to).expect(from);
            assert!(why.contains(word), "{why}");
        }
        let by_table = ours.replace(" CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin", "");
        let by_table = by_table.replace("utf8mb4_general_ci", "utf8mb4_nopad_bin");
        assert_eq!(table_defect(&by_table, "utf8mb4_nopad_bin"), None);
    }
}
