//! What stands between one process and the database: a proxy for each host that it may go to.

use testkit::Proxy;

/// Proxies that are broken and mended together.
#[derive(Debug)]
pub struct Network(Vec<Proxy>);

impl Network {
    /// Of these. The first leads to where the process writes.
    pub fn new(proxies: Vec<Proxy>) -> Self {
        Self(proxies)
    }

    /// A URL by way of all of them, in their order; they stand in the place of its host.
    pub fn url(&self, of: &str) -> String {
        let mut url = self.first().url(of);
        let first = format!("127.0.0.1:{}", self.first().port());
        let all: Vec<String> = self
            .0
            .iter()
            .map(|proxy| format!("127.0.0.1:{}", proxy.port()))
            .collect();
        url = url.replacen(&first, &all.join(","), 1);
        url
    }

    /// A URL by way of the first.
    pub fn first_url(&self, of: &str) -> String {
        self.first().url(of)
    }

    fn first(&self) -> &Proxy {
        self.0.first().expect("there is one at least")
    }

    /// See [`Proxy::stall`].
    pub fn stall(&self) {
        self.0.iter().for_each(Proxy::stall);
    }

    /// See [`Proxy::stall_replies`].
    pub fn stall_replies(&self) {
        self.0.iter().for_each(Proxy::stall_replies);
    }

    /// See [`Proxy::resume`].
    pub fn resume(&self) {
        self.0.iter().for_each(Proxy::resume);
    }

    /// See [`Proxy::cut`].
    pub fn cut(&self) {
        self.0.iter().for_each(Proxy::cut);
    }

    /// See [`Proxy::refuse`].
    pub fn refuse(&self, refuse: bool) {
        self.0.iter().for_each(|proxy| proxy.refuse(refuse));
    }

    /// The next request is carried out and its reply lost, by whichever of them it comes first.
    pub fn lose_next_reply(&self) {
        self.0.iter().for_each(|proxy| proxy.lose_next_reply(""));
    }

    /// The next request is lost.
    pub fn lose_next_request(&self) {
        self.0.iter().for_each(|proxy| proxy.lose_next_request(""));
    }

    /// Lose nothing more, where that has not come to pass by all of them.
    pub fn lose_nothing(&self) {
        // What no client ever sends.
        let never = "\u{0}torture: never\u{0}";
        self.0.iter().for_each(|proxy| proxy.lose_next_reply(never));
    }

    /// How many faults have landed.
    pub fn faults_hit(&self) -> u64 {
        self.0.iter().map(Proxy::faults_hit).sum()
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.0.iter().map(Proxy::open_connections).sum()
    }
}
