//! The network between one process and the database: a proxy for each host of its URL.

use testkit::Proxy;

/// Proxies whose faults begin and end together.
#[derive(Debug)]
pub struct Network(Vec<Proxy>);

impl Network {
    /// A network of these proxies. The first leads to the host of the writes.
    pub fn new(proxies: Vec<Proxy>) -> Self {
        Self(proxies)
    }

    /// The URL through all proxies, which take the place of its host.
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

    /// The URL through the first proxy.
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

    /// Loses the reply to the next request, which is carried out.
    pub fn lose_next_reply(&self) {
        self.0.iter().for_each(|proxy| proxy.lose_next_reply(""));
    }

    /// Loses the reply to the next request with this text, which is carried out.
    pub fn lose_reply_to(&self, text: &str) {
        self.0.iter().for_each(|proxy| proxy.lose_next_reply(text));
    }

    /// Loses the next request.
    pub fn lose_next_request(&self) {
        self.0.iter().for_each(|proxy| proxy.lose_next_request(""));
    }

    /// Cancels the losses that are still scheduled.
    pub fn cancel_losses(&self) {
        // No client ever sends this.
        let never = "\u{0}torture: never\u{0}";
        self.0.iter().for_each(|proxy| proxy.lose_next_reply(never));
    }

    /// The number of faults that took effect.
    pub fn faults_hit(&self) -> u64 {
        self.0.iter().map(Proxy::faults_hit).sum()
    }

    /// The number of open connections.
    pub fn open_connections(&self) -> usize {
        self.0.iter().map(Proxy::open_connections).sum()
    }
}
