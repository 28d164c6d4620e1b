//! The texts that `--help` and the manual pages show after the options.
//!
//! No line is longer than 80 characters: clap would wrap it, and break the tables and examples.

macro_rules! texts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) const $name: &str =
            include_str!(concat!("help/", $file, ".txt")).trim_ascii_end();)*
    };
}

texts! {
    DBLOCK = "dblock";
    RUN = "run";
    LEAD = "lead";
    ACQUIRE = "acquire";
    RENEW = "renew";
    RELEASE = "release";
    LIST = "list";
    LIMIT = "limit";
    GUARD = "guard";
    UNGUARD = "unguard";
    SHOW = "show";
    PRUNE = "prune";
    INIT = "init";
    COMPLETIONS = "completions";
    MAN = "man";
    HELP = "help";
    DOCTOR = "doctor";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_longer_than_80_characters() {
        let all = [
            DBLOCK,
            RUN,
            LEAD,
            ACQUIRE,
            RENEW,
            RELEASE,
            LIST,
            LIMIT,
            GUARD,
            UNGUARD,
            SHOW,
            PRUNE,
            INIT,
            COMPLETIONS,
            MAN,
            HELP,
            DOCTOR,
        ];
        for line in all.iter().flat_map(|text| text.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
