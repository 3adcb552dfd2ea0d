const place = "dbpkit " + location.pathname;
scrollTo(0, Number(sessionStorage.getItem(place) ?? scrollY));
const again = () => {
  if (!getSelection().isCollapsed) return setTimeout(again, 1000);
  sessionStorage.setItem(place, scrollY);
  location.reload();
};
setTimeout(again, {{ 1000 * live.seconds }});
