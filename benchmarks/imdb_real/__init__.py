"""The paper's setting with a real language model: beginnings of film reviews, continued, judged by sentiment."""
