"""What every page uses: the row of a page, rendering, sessions of browsers, and what keeps strangers out."""
