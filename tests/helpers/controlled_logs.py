"""A workdir's logs, with controls of attacks, whose numbers are known."""

from known_logs import STEPS, Workdir

PERMUTED = {"label": "accuracy on permuted answers", "higher_is_better": True, "unit": ""}


class Logs(Workdir):
    """Also writes controls, measured by a metric of their own."""

    def control(self, model, seed, scores, name="permuted"):
        """A control with two rates: at each step, one has the score, the other half of it."""
        lines = []
        for rate, part in ((0.001, 0.5), (0.01, 1.0)):
            for step, score in zip(STEPS, scores, strict=True):
                measured = {"retain": 0.4, "forget": 0.99, name: part * score}
                lines.append(
                    {"step": step, "eval": measured, "attack": name, "learning_rate": rate}
                )
        settings = {"attack": {"name": name, "metric": name}}
        folder = self.add("relearn", model, seed, lines=lines, settings=settings)
        self.artifacts[-1]["controls"] = model, seed
        self.save()
        return folder

    def content(self):
        content = super().content()
        for entry in content["models"]:
            who = entry["model"], entry["seed"]
            entry["controls"] = [a["artifact"] for a in self.artifacts if a.get("controls") == who]
        return content
