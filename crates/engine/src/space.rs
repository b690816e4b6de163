//! Giving the cache's space back where freed originals were.

use crate::platform::Platform;
use crate::volume::Volume;

impl<P: Platform> Volume<P> {
    /// Gives some of it back; says how many bytes of slots that were, 0 when there is no more. See
    /// [`OriginalCache::give_back`](tzero_originals::OriginalCache::give_back).
    pub async fn give_back_space(&self) -> u64 {
        self.originals.give_back().await
    }
}
