// Pages before objects: a question is answered by a page, and a name is found all the same.
var Scorer = {
  objNameMatch: 8,
  objPartialMatch: 3,
  objPrio: { 0: 2, 1: 0, 2: -5 },
  objPrioDefault: 0,
  title: 20,
  partialTitle: 9,
  term: 5,
  partialTerm: 2,
};
