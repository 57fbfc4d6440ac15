// Wide tables, code and plots scroll in themselves; so that keys can scroll them too, they must take the focus.
addEventListener("load", () => {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code, .md-typeset figure, .md-typeset p:has(> img)")) {
    if (wrap.scrollWidth > wrap.clientWidth) wrap.tabIndex = 0;
  }
});
