//! The compiler's messages. `TRYBUILD=overwrite` writes the expected output anew.

#[test]
fn mistakes_are_refused_where_they_stand_and_the_rest_compiles() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/fail/*.rs");
}
