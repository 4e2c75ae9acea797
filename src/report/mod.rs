//! What to show (sections) apart from how (format/). In: results. Out: text. It measures nothing.
