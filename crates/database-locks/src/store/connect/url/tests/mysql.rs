//! The option file of MySQL and MariaDB.

use super::*;

#[test]
fn mysql_the_url_comes_first_then_the_option_file_and_the_variable() {
    let file = "[mysql]\npassword=no\n[client]\nuser = of_file\npassword = \"from # file\"
host=file.example\nport=3310\nssl-ca=/ca.pem\n[dblock]\nuser=of_dblock # a comment\n";
    let mode = [(".my.cnf", 0o600, file)];
    let full = Home::new(&mode, &[("MYSQL_PWD", "from env")]);
    let bare = Home::new(&[], &[("MYSQL_PWD", "from env")]);
    for (home, url, expected) in [
        (&full, "mysql://u:p@h:3307/d", "u p h:3307 d"),
        (&full, "mysql://u:p@h/d", "u p h:3310 d"),
        (&full, "mysql://u@h/d", "u from # file h:3310 d"),
        (
            &full,
            "mysql:///d",
            "of_dblock from # file file.example:3310 d",
        ),
        (&full, "mysql://u:@h/d", "u  h:3310 d"),
        (&bare, "mysql://u@h/d", "u from env h:3306 d"),
        (&bare, "mysql://u:p@h/d", "u p h:3306 d"),
    ] {
        assert_eq!(shown(&home.server(url)), expected, "{url}");
    }
    let tls = full.server("mysql://h/d").tls;
    assert_eq!(tls, bare.server("mysql://h/d?ssl-ca=/ca.pem").tls);
    let none = full.server("mysql://h/d?sslmode=disable").tls;
    assert_eq!(none, bare.server("mysql://h/d?sslmode=disable").tls);
}

#[test]
fn an_option_file_is_read_as_the_clients_read_it() {
    for (text, expected) in [
        ("socket=/run/m.sock\nhost=localhost", "- - /run/m.sock d"),
        ("socket=/run/m.sock\nhost=h", "- - h:3306 d"),
        (
            "user='a b'\npassword='it\\'s # \\\\'",
            "a b it's # \\ localhost:3306 d",
        ),
        ("password=a#b # c", "- a#b localhost:3306 d"),
        ("loose-user=a\npassword=\\sx", "a  x localhost:3306 d"),
        ("PassWord=x\nskip_ssl", "- x localhost:3306 d"),
    ] {
        let text = format!("[client]\n{text}\n");
        let home = Home::new(&[(".my.cnf", 0o600, &text)], &[]);
        assert_eq!(shown(&home.server("mysql:///d")), expected, "{text}");
    }
    let files = [
        (".my.cnf", 0o600, "!include more.cnf\n[client]\nuser=a\n"),
        ("more.cnf", 0o600, "[client]\nuser=b\npassword=c\n"),
    ];
    assert_eq!(
        shown(&Home::new(&files, &[]).server("mysql://h/d")),
        "a c h:3306 d"
    );
    // Any user of the machine could have written it.
    let open = Home::new(&[(".my.cnf", 0o646, "[client]\npassword=x\n")], &[]);
    assert_eq!(shown(&open.server("mysql://h/d")), "- - h:3306 d");
    // No home folder that this user can look into.
    let elsewhere = Home::new(&[], &[("HOME", "/dev/null")]);
    for url in ["mysql://h/d", "postgres://h/d"] {
        assert_eq!(elsewhere.server(url).password_at(0), None);
    }
    let bad = Home::new(&[(".my.cnf", 0o600, "[client]\nssl-mode=hunter2\n")], &[]);
    let message = bad.invalid("mysql://h/d");
    assert!(
        message.starts_with("`~/.my.cnf` has an unknown `ssl-mode`"),
        "{message}"
    );
}
