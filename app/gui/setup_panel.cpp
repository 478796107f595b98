#include "app/gui/setup_panel.h"

#include "app/gui/theme.h"
#include "engine/data/error.h"
#include "engine/data/picture.h"
#include "engine/engine.h"
#include "widgets/lanes/lane_color.h"

#include <QApplication>
#include <QClipboard>
#include <QComboBox>
#include <QCryptographicHash>
#include <QDir>
#include <QFileDialog>
#include <QFileInfo>
#include <QFontDatabase>
#include <QHBoxLayout>
#include <QLabel>
#include <QMenu>
#include <QPlainTextEdit>
#include <QScrollArea>
#include <QStandardPaths>
#include <QToolButton>
#include <QVBoxLayout>

#include <algorithm>

namespace keepsight {

namespace {

QLabel* heading(const QString& text, QWidget* buddy = nullptr) {
    auto* label = new QLabel(text);
    label->setProperty("role", "heading");
    if (buddy) label->setBuddy(buddy);
    return label;
}

QString modelTitle(const QString& path) {
    const QFileInfo file(path);
    return file.suffix() == "gguf" ? file.completeBaseName() : file.fileName();
}

bool hasBudget(const PolicySpec& spec) {
    const auto& policies = Engine::policies();
    const auto found = std::ranges::find(policies, spec.id, &PolicyInfo::id);
    return found == policies.end() || found->usesBudget;
}

// A suite: every lane at each share removed, its quantizer kept.
std::vector<LaneSpec> crossed(const std::vector<LaneSpec>& lanes, const std::vector<double>& ratios) {
    std::vector<LaneSpec> out;
    for (const LaneSpec& lane : lanes) {
        if (!hasBudget(lane.policy)) {
            out.push_back(lane);
            continue;
        }
        for (const double ratio : ratios) {
            out.push_back(lane);
            out.back().policy.budget = Budget::removed(ratio);
        }
    }
    for (std::size_t i = 0; i < out.size(); ++i)
        out[i].label = i < 26 ? std::string(1, static_cast<char>('A' + i)) : "L" + std::to_string(i);
    return out;
}

// The lanes and shares that cross to these rows; no lanes: they were not made here.
std::pair<std::vector<LaneSpec>, std::vector<double>> uncrossed(const std::vector<LaneSpec>& rows) {
    std::vector<LaneSpec> lanes;
    std::vector<double> ratios;
    for (const LaneSpec& row : rows) {
        LaneSpec lane = row;
        const auto same = [&](const LaneSpec& other) {
            lane.policy.budget = other.policy.budget;
            return lane.policy == other.policy;
        };
        if (std::ranges::none_of(lanes, same)) lanes.push_back(row);
        if (hasBudget(row.policy) && std::ranges::find(ratios, row.policy.budget.compressionRatio) == ratios.end()) ratios.push_back(row.policy.budget.compressionRatio);
    }
    for (std::size_t i = 0; i < lanes.size(); ++i)
        lanes[i].label = laneLetter(LaneIndex(static_cast<int>(i))).toStdString();
    if (lanes.size() > std::size_t(MaxLanes) || crossed(lanes, ratios) != rows) lanes.clear();
    return {lanes, ratios};
}

} // namespace

SetupPanel::SetupPanel(QWidget* parent)
    : QWidget(parent), m_models(new QComboBox), m_prompt(new PromptPanel), m_lanes(new LanePanel(Engine::policies())), m_settings(new RunSettings),
      m_command(new QPlainTextEdit), m_copy(new QToolButton) {
    m_lanes->setQuantizers(Engine::quantizers(), [](const PolicySpec& spec) -> QString {
        try {
            return QString::fromStdString(Engine::incompatibility(spec));
        } catch (const std::exception& e) {
            return QString::fromUtf8(e.what());
        }
    });
    m_models->setObjectName("models");
    m_models->setAccessibleName(tr("Model"));
    m_models->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
    m_models->setMinimumContentsLength(8);
    m_models->setPlaceholderText(tr("Choose a model"));
    auto* open = new QToolButton;
    open->setIcon(themedIcon("open"));
    open->setToolTip(tr("Open a model: a .gguf file or a Hugging Face directory"));
    open->setAccessibleName(tr("Open a model"));
    open->setPopupMode(QToolButton::InstantPopup);
    auto* menu = new QMenu(open);
    menu->addAction(tr("GGUF file…"), this, [this] { chooseModelFile(false); });
    menu->addAction(tr("Hugging Face directory…"), this, [this] { chooseModelFile(true); });
    open->setMenu(menu);
    open->setStyleSheet("QToolButton::menu-indicator { image: none; }");
    connect(m_models, &QComboBox::activated, this, [this](int index) { Q_EMIT modelChosen(m_models->itemData(index).toString()); });

    m_command->setReadOnly(true);
    m_command->setAccessibleName(tr("Command line of this run"));
    m_command->setFont(QFontDatabase::systemFont(QFontDatabase::FixedFont));
    m_command->setTabChangesFocus(true);
    m_command->setWordWrapMode(QTextOption::WrapAtWordBoundaryOrAnywhere);
    m_command->setFixedHeight(78);
    m_command->document()->setDocumentMargin(3);
    QFont small = m_command->font();
    small.setPointSizeF(QApplication::font().pointSizeF() * 0.85);
    m_command->setFont(small);
    m_copy->setIcon(themedIcon("copy"));
    m_copy->setAutoRaise(true);
    m_copy->setToolTip(tr("Copy the command line"));
    m_copy->setAccessibleName(tr("Copy the command line"));
    connect(m_copy, &QToolButton::clicked, this, [this] {
        try {
            QApplication::clipboard()->setText(m_recorded.isEmpty() ? QString::fromStdString(runnableJob(m_kind).commandLine) : m_recorded);
        } catch (const std::exception& e) {
            Q_EMIT failed(QString::fromUtf8(e.what()));
        }
    });

    auto* body = new QWidget;
    auto* column = new QVBoxLayout(body);
    column->setContentsMargins(8, 6, 8, 6);
    column->setSpacing(4);
    auto* modelRow = new QHBoxLayout;
    modelRow->addWidget(m_models, 1);
    modelRow->addWidget(open);
    column->addWidget(heading(tr("Model"), m_models));
    column->addLayout(modelRow);
    column->addSpacing(2);
    column->addWidget(heading(tr("Text")));
    column->addWidget(m_prompt);
    column->addSpacing(2);
    column->addWidget(heading(tr("Lanes")));
    column->addWidget(m_lanes);
    column->addSpacing(2);
    column->addWidget(m_settings);
    auto* commandRow = new QHBoxLayout;
    commandRow->addWidget(heading(tr("Command line"), m_command), 1);
    commandRow->addWidget(m_copy);
    column->addLayout(commandRow);
    column->addWidget(m_command);
    column->addStretch(1);

    auto* scroll = new QScrollArea;
    scroll->setWidgetResizable(true);
    scroll->setFrameShape(QFrame::NoFrame);
    scroll->setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
    scroll->setWidget(body);
    auto* outer = new QVBoxLayout(this);
    outer->setContentsMargins(0, 0, 0, 0);
    outer->addWidget(scroll);

    connect(m_prompt, &PromptPanel::changed, this, &SetupPanel::edited);
    connect(m_prompt, &PromptPanel::failed, this, &SetupPanel::failed);
    connect(m_settings, &RunSettings::changed, this, &SetupPanel::edited);
}

Job SetupPanel::job(RunKind kind) const {
    Job job;
    job.kind = kind;
    job.prompt = m_prompt->prompt();
    job.lanes = m_lanes->lanes();
    job.score.prefixRatio = m_prompt->prefixRatio();
    m_settings->apply(job);
    if (kind == RunKind::suite) job.lanes = crossed(job.lanes, m_settings->suiteRatios());
    job.commandLine = commandLineOf(job, m_model.toStdString(), promptFile().toStdString());
    return job;
}

// The file the command line names: the one the text came from, else one of our own that keepPromptFile() writes.
QString SetupPanel::promptFile() const {
    const QString from = m_prompt->textFile();
    const QByteArray text = QByteArray::fromStdString(m_prompt->prompt().text);
    if (!from.isEmpty() || text.isEmpty()) return from;
    const QString name = QString::fromLatin1(QCryptographicHash::hash(text, QCryptographicHash::Sha1).toHex().left(10));
    return QStandardPaths::writableLocation(QStandardPaths::AppLocalDataLocation) + "/prompts/" + name + ".txt";
}

Job SetupPanel::runnableJob(RunKind kind) const {
    const QString file = promptFile();
    if (m_prompt->textFile().isEmpty() && !file.isEmpty() && !QFileInfo::exists(file)) {
        QDir().mkpath(QFileInfo(file).path());
        try {
            writeFileAtomically(file.toStdString(), m_prompt->prompt().text);
        } catch (const EngineError&) { // no room or no right to keep it: the run itself does not need the file
        }
    }
    return job(kind);
}

void SetupPanel::setJob(const Job& job) {
    if (!job.prompt.text.empty() || job.prompt.ids) m_prompt->setPrompt(job.prompt);
    m_prompt->setPrefixRatio(job.score.prefixRatio);
    if (job.kind == RunKind::suite || job.kind == RunKind::ppl) {
        const auto [lanes, ratios] = uncrossed(job.lanes);
        if (!lanes.empty()) m_lanes->setLanes(lanes);
        if (!lanes.empty() && !ratios.empty()) m_settings->setSuiteRatios(ratios);
    } else if (!job.lanes.empty()) {
        m_lanes->setLanes(job.lanes);
    }
    m_settings->show(job);
    showCommandLine(job.kind);
}

void SetupPanel::setTextTokens(int tokens) {
    m_prompt->setTokenCount(tokens);
    m_settings->setTextTokens(tokens);
    m_lanes->setPromptTokens(tokens < 2 ? 0 : std::clamp(int(tokens * m_prompt->prefixRatio()), 1, tokens - 1));
    if (m_kind == RunKind::suite) showCommandLine(m_kind);
}

void SetupPanel::setModels(const QStringList& recent, const QString& current) {
    m_model = current;
    m_models->clear();
    QStringList all = recent;
    if (!current.isEmpty() && !all.contains(current)) all.prepend(current);
    for (const QString& path : all) {
        m_models->addItem(modelTitle(path), path);
        m_models->setItemData(m_models->count() - 1, path, Qt::ToolTipRole);
    }
    m_models->setCurrentIndex(static_cast<int>(all.indexOf(current)));
    m_models->setToolTip(current);
}

void SetupPanel::showRecorded(const QString& commandLine) {
    if (commandLine.isEmpty()) return;
    try {
        m_recordedJob = job(m_kind);
    } catch (const std::exception&) { // fields that cannot be read: whatever comes next differs from what was recorded
        return;
    }
    m_recorded = commandLine;
    m_command->setPlainText(commandLine);
}

void SetupPanel::showCommandLine(RunKind kind) {
    m_kind = kind;
    QString text;
    try {
        const Job now = job(kind);
        if (!m_recorded.isEmpty() && now == m_recordedJob) return; // still as it was recorded
        text = QString::fromStdString(now.commandLine);
    } catch (const std::exception& e) {
        text = QString::fromUtf8(e.what());
    }
    m_recorded.clear();
    if (text != m_command->toPlainText()) m_command->setPlainText(text);
}

void SetupPanel::chooseModelFile(bool directory) {
    Settings settings;
    const QString path = directory ? QFileDialog::getExistingDirectory(this, tr("Open a model directory"), settings.lastFolder())
                                   : QFileDialog::getOpenFileName(this, tr("Open a model"), settings.lastFolder(), tr("GGUF models (*.gguf);;All files (*)"));
    if (path.isEmpty()) return;
    settings.setLastFolder(QFileInfo(path).absolutePath());
    Q_EMIT modelChosen(path);
}

} // namespace keepsight
